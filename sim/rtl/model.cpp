// The world around the simulated accelerator: a clock, memories behind AXI4 ports, and a host on
// AXI4-Lite. The kernel and the lanes are models of their own, so that the code of a lane is there
// once. `ports.h` is generated; it binds their ports to each other and to the structures here.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dram.h"
#include "Vkernel.h"
#include "Vlane.h"
#include "verilated.h"
#ifdef ALULA_TRACE
#include "verilated_fst_c.h"
#endif

namespace {

constexpr uint32_t WHOLE = 1024;  // credit that a beat costs
constexpr size_t QUEUED = 64;     // bursts that a port takes before it waits
constexpr uint64_t PAGE = 4096;   // that no burst crosses

struct Region {
    uint64_t start, size;
    uint8_t *data;
    bool writable;
};

// How a port's memory answers. Stalls are shares of 65536.
struct Timing {
    uint32_t latency = 1;        // clocks from an address to its first beat
    uint32_t beats_per_1024 = 1024;  // of 1024 clocks, those that may carry a beat
    uint32_t stall = 0;          // chance that a channel waits in a clock
};

struct Burst {
    uint64_t address;
    uint32_t beats;
    uint64_t ready;  // the clock in which its next beat may come
};

struct Port {
    uint32_t bytes;
    // Reads.
    uint64_t *araddr;
    uint8_t *arlen, *arvalid, *arready, *rresp, *rlast, *rvalid, *rready;
    void *rdata;
    // Writes.
    uint64_t *awaddr;
    uint8_t *awlen, *awvalid, *awready, *wlast, *wvalid, *wready, *bresp, *bvalid, *bready;
    void *wdata, *wstrb;

    std::vector<Region> regions;
    uint64_t denied = 0, denied_size = 0;  // addresses that answer with an error
    Timing timing;
    std::mt19937 random;
    std::deque<Burst> reads, writes, answers;
    bool write_failed = false, read_taken = false, answer_taken = false;
    std::shared_ptr<Dram> dram = std::make_shared<Dram>();  // of one port, or of all
    uint32_t stripes = 1;  // narrower ports that the beats are striped over, as for time
    uint32_t parts = 1;    // and as for where their bytes are
    std::deque<uint64_t> times;  // the clocks in which the beats of all reads may come
    uint32_t credit = 0;
    uint64_t read_beats = 0, written_beats = 0, errors = 0;

    bool stalls() { return timing.stall && (random() & 0xFFFF) < timing.stall; }

    // The first clock in which what the memory has at a time is at the port.
    uint64_t clock_of(uint64_t time) const {
        return (time + dram->t.controller + dram->t.clock - 1) / dram->t.clock;
    }

    // Move a burst's beats; `moved` is told the time of each.
    template <class F>
    void move(uint64_t address, uint32_t beats, bool write, uint64_t now, F moved) {
        uint64_t asked = now * dram->t.clock, time = 0, line = ~0ull;
        for (; beats--; address += bytes) {
            uint64_t at = stripe(address, 0, stripes) / dram->t.access_bytes;
            if (stripes == 1) time = dram->access(address, bytes, write, asked);
            else if (at != line)  // narrow parts of several beats are one access of each port
                for (uint32_t port = 0; port < stripes; ++port)
                    time = dram->access(stripe(address, port, stripes), bytes / stripes, write, asked);
            line = at;
            moved(clock_of(time));
        }
    }

    // Where one of several narrower ports has its part of a beat. Ref: alula.hw.stripe.
    static uint64_t stripe(uint64_t address, uint32_t port, uint32_t ports) {
        uint64_t page = address / (ports * PAGE), in_page = address % (ports * PAGE) / ports;
        return (page * ports + port) * PAGE + in_page;
    }

    uint8_t *find(uint64_t address, bool writing, uint32_t part = 0) {
        address = stripe(address, part, parts);
        uint32_t size = bytes / parts;
        if (address + size > denied && address < denied + denied_size) return nullptr;
        for (const Region &region : regions)
            if (address >= region.start && address - region.start + size <= region.size)
                return writing && !region.writable ? nullptr
                                                   : region.data + (address - region.start);
        return nullptr;
    }

    // Set what the memory offers in the clock that begins.
    void offer(uint64_t now) {
        if (read_taken) *rvalid = 0;
        if (answer_taken) *bvalid = 0;
        read_taken = answer_taken = false;
        *arready = reads.size() < QUEUED && !stalls();
        *awready = writes.size() < QUEUED && !stalls();
        *wready = !writes.empty() && !stalls();
        if (credit < 4 * WHOLE) credit += timing.beats_per_1024;
        if (!*rvalid && !reads.empty() && now >= reads.front().ready && credit >= WHOLE && !stalls())
            present();
        if (!*bvalid && !answers.empty() && now >= answers.front().ready && !stalls()) {
            *bvalid = 1;
            *bresp = answers.front().beats;
        }
    }

    void present() {
        Burst &burst = reads.front();
        bool found = true;
        uint8_t *target = static_cast<uint8_t *>(rdata);
        for (uint32_t part = 0, size = bytes / parts; part < parts; ++part) {
            const uint8_t *source = find(burst.address, false, part);
            found &= source != nullptr;
            if (source) memcpy(target + part * size, source, size);
            else memset(target + part * size, 0, size);
        }
        *rvalid = 1;
        *rlast = burst.beats == 1;
        *rresp = found ? 0 : 3;
        errors += !found;
    }

    // Take what is handed over at the end of the clock; the pins change in the next.
    void take(uint64_t now) {
        if (*rvalid && *rready) {
            Burst &burst = reads.front();
            read_taken = true;
            credit -= WHOLE;
            ++read_beats;
            burst.address += bytes;
            if (!--burst.beats) reads.pop_front();
            if (dram->on()) {
                times.pop_front();
                if (!reads.empty()) reads.front().ready = times.front();
            }
        }
        if (*arvalid && *arready) {
            Burst burst{*araddr, uint32_t(*arlen) + 1, now + timing.latency};
            if (dram->on()) {
                move(burst.address, burst.beats, false, now,
                     [this](uint64_t clock) { times.push_back(clock); });
                burst.ready = times[times.size() - burst.beats];
            }
            reads.push_back(burst);
        }
        if (*bvalid && *bready) {
            answer_taken = true;
            answers.pop_front();
        }
        if (*wvalid && *wready) write(now);
        if (*awvalid && *awready) writes.push_back({*awaddr, uint32_t(*awlen) + 1, 0});
    }

    void write(uint64_t now) {
        Burst &burst = writes.front();
        uint64_t mask = 0;
        memcpy(&mask, wstrb, (bytes + 7) / 8);
        if (mask) {
            const uint8_t *source = static_cast<const uint8_t *>(wdata);
            for (uint32_t part = 0, size = bytes / parts; part < parts; ++part) {
                uint8_t *target = find(burst.address, true, part);
                write_failed |= !target;
                for (uint32_t at = 0; target && at < size; ++at)
                    if (mask >> (part * size + at) & 1) target[at] = source[part * size + at];
            }
        }
        ++written_beats;
        uint64_t answer = now + timing.latency;
        if (dram->on())
            move(burst.address, 1, true, now, [&](uint64_t clock) { answer = clock; });
        burst.address += bytes;
        if (--burst.beats) return;
        answers.push_back({0, write_failed ? 3u : 0u, answer});
        errors += write_failed;
        write_failed = false;
        writes.pop_front();
    }
};

// A unit's instruction began or ended.
struct Event {
    uint64_t clock;
    uint32_t queue, index, begins;
};

// What a lane does in a clock. Ref: alula.sim.cycles.REASONS.
enum { BEAT, MEMORY, CONTROL, FIRST_QUEUE };
constexpr size_t QUEUES = 5, REASONS = FIRST_QUEUE + QUEUES;
constexpr size_t PRIORITY[QUEUES] = {2, 3, 4, 0, 1};  // MM, MV, MISC, LD, ST: what keeps a lane

// What units and lanes do, clock by clock, while someone watches.
struct Watch {
    bool on = false;
    uint32_t state[QUEUES] = {};
    std::vector<Event> events;
    std::vector<uint64_t> clocks;  // by lane and reason

    void unit(uint64_t now, uint32_t queue, uint32_t word) {
        if (word == state[queue]) return;
        if (state[queue] & 1) events.push_back({now, queue, state[queue] >> 1, 0});
        if (word & 1) events.push_back({now, queue, word >> 1, 1});
        state[queue] = word & 1 ? word : 0;
    }
};

// Set a port; return whether it changes.
template <class T> bool give(T &to, const T &from) {
    if (!memcmp(&to, &from, sizeof(T))) return false;
    memcpy(&to, &from, sizeof(T));
    return true;
}

struct Machine {
    VerilatedContext context;
    std::unique_ptr<Vkernel> top;
    std::vector<std::unique_ptr<Vlane>> lanes;
    std::vector<Port> ports;
    Watch watch;
    uint64_t now = 0;
#ifdef ALULA_TRACE
    std::unique_ptr<VerilatedFstC> trace;
    uint64_t trace_start = 0, trace_stop = 0;
#endif

    Machine();
    bool to_lane(size_t lane);    // give a lane what the kernel says; return whether that is new
    bool from_lane(size_t lane);  // and the kernel what a lane says

    void set_clock(int level) {
        top->clk = level;
        for (auto &lane : lanes) lane->clk = level;
    }

    // Let everything follow from what the registers and the memories say, while the clock is low.
    void settle() {
        set_clock(0);
        for (bool first = true, news = true; news; first = false) {
            news = first;
            for (size_t at = 0; at < lanes.size(); ++at)
                if (to_lane(at) | first) {
                    lanes[at]->eval();
                    news |= from_lane(at);
                }
            if (news) top->eval();
        }
    }

    void clock() {
        begin();
        end();
    }

    // The first half of a clock: memories offer what they have, and all that needs no edge follows.
    void begin() {
        for (Port &port : ports) port.offer(now);
        settle();
        dump(2 * now);
    }

    // Before the clock's end, when all that is offered and taken in it is known.
    void look() {
        uint64_t words[QUEUES];
        watched(words);
        size_t keeps = CONTROL;
        for (size_t queue = QUEUES; queue-- > 0;)
            if (words[PRIORITY[queue]] & 1) keeps = FIRST_QUEUE + PRIORITY[queue];
        for (size_t queue = 0; queue < QUEUES; ++queue)
            watch.unit(now, queue, words[queue] & 1 ? uint32_t(words[queue]) : 0);
        for (size_t lane = 0; lane < lanes.size(); ++lane) {
            const Port &port = ports[1 + lane];
            size_t reason = *port.rvalid && *port.rready ? size_t(BEAT)
                            : !port.reads.empty() && !*port.rvalid ? size_t(MEMORY)
                                                                   : keeps;
            ++watch.clocks[lane * REASONS + reason];
        }
    }

    void watched(uint64_t *words);  // each queue: whether it runs, and the instruction

    void end() {
        if (watch.on) look();
        if (!top->rst)
            for (Port &port : ports) port.take(now);
        set_clock(1);
        top->eval();
        for (auto &lane : lanes) lane->eval();
        dump(2 * now + 1);
        ++now;
    }

    // One access on AXI4-Lite.
    void write_register(uint32_t address, uint32_t value) {
        top->s_axi_control_awaddr = address;
        top->s_axi_control_wdata = value;
        top->s_axi_control_wstrb = 15;
        top->s_axi_control_awvalid = top->s_axi_control_wvalid = 1;
        top->s_axi_control_bready = 1;
        bool sent = false;
        while (!sent) {
            begin();
            sent = top->s_axi_control_awready && top->s_axi_control_wready;
            end();
        }
        top->s_axi_control_awvalid = top->s_axi_control_wvalid = 0;
        while (!top->s_axi_control_bvalid) clock();
        clock();
    }

    uint32_t read_register(uint32_t address) {
        top->s_axi_control_araddr = address;
        top->s_axi_control_arvalid = 1;
        top->s_axi_control_rready = 0;
        bool sent = false;
        while (!sent) {
            begin();
            sent = top->s_axi_control_arready;
            end();
        }
        top->s_axi_control_arvalid = 0;
        while (!top->s_axi_control_rvalid) clock();
        uint32_t value = top->s_axi_control_rdata;
        top->s_axi_control_rready = 1;
        clock();
        top->s_axi_control_rready = 0;
        return value;
    }

    void start() {
        top->rst = 1;
        for (int at = 0; at < 4; ++at) clock();
        top->rst = 0;
        clock();
    }

    void dump(uint64_t time) {
#ifdef ALULA_TRACE
        if (!trace || time < trace_start) return;
        trace->dump(time);
        if (time >= trace_stop) {
            trace->close();
            trace.reset();
        }
#else
        (void)time;
#endif
    }
};

#include "ports.h"  // Machine::Machine, which binds `ports`

}  // namespace

extern "C" {

Machine *alula_new() {
    Machine *machine = new Machine;
    machine->start();
    return machine;
}

void alula_delete(Machine *machine) {
    machine->top->final();
    for (auto &lane : machine->lanes) lane->final();
    delete machine;
}

// Ports: 0 is the control memory's, lane i is 1 + i.
void alula_region(Machine *machine, uint32_t port, uint64_t start, uint64_t size, uint8_t *data,
                  int writable) {
    machine->ports[port].regions.push_back({start, size, data, writable != 0});
}

// Answer some addresses with errors; a size of 0 ends it.
void alula_deny(Machine *machine, uint32_t port, uint64_t start, uint64_t size) {
    machine->ports[port].denied = start;
    machine->ports[port].denied_size = size;
}

void alula_timing(Machine *machine, uint32_t port, uint32_t latency, uint32_t beats_per_1024,
                  uint32_t stall, uint32_t seed) {
    machine->ports[port].timing = {latency, beats_per_1024, stall};
    machine->ports[port].random.seed(seed + port);
}

// Let a port's memory be a channel of dynamic memory; `values` are those of DramTiming. It is the
// channel of port `shared`, which may be the port itself, and is read by `stripes` narrower ports.
void alula_dram(Machine *machine, uint32_t port, uint32_t shared, uint32_t stripes,
                const uint64_t *values) {
    DramTiming timing;
    memcpy(&timing, values, sizeof timing);
    if (port != shared) machine->ports[port].dram = machine->ports[shared].dram;
    machine->ports[port].dram->set(timing);
    machine->ports[port].stripes = stripes;
}

// Let a port's bytes be where so many narrower ports find them.
void alula_stripe(Machine *machine, uint32_t port, uint32_t parts) {
    machine->ports[port].parts = parts;
}

// Begin to watch, forgetting what was seen before, or stop.
void alula_watch(Machine *machine, int on) {
    machine->watch = Watch();
    machine->watch.on = on != 0;
    machine->watch.clocks.assign(machine->lanes.size() * REASONS, 0);
}

uint64_t alula_events(Machine *machine, const Event **events) {
    *events = machine->watch.events.data();
    return machine->watch.events.size();
}

const uint64_t *alula_reasons(Machine *machine) { return machine->watch.clocks.data(); }

void alula_write_register(Machine *machine, uint32_t address, uint32_t value) {
    machine->write_register(address, value);
}

uint32_t alula_read_register(Machine *machine, uint32_t address) {
    return machine->read_register(address);
}

// Run until the interrupt (a keyword to some C++ compilers, so Verilator renames it), for at most some clocks; return whether it came.
int alula_wait(Machine *machine, uint64_t clocks) {
    for (uint64_t at = 0; at < clocks; ++at) {
        if (machine->top->__SYM__interrupt) return 1;
        machine->clock();
    }
    return machine->top->__SYM__interrupt;
}

uint64_t alula_clocks(Machine *machine) { return machine->now; }

uint64_t alula_read_beats(Machine *machine, uint32_t port) {
    return machine->ports[port].read_beats;
}

uint64_t alula_written_beats(Machine *machine, uint32_t port) {
    return machine->ports[port].written_beats;
}

int alula_trace(Machine *machine, const char *path, uint64_t start, uint64_t clocks) {
#ifdef ALULA_TRACE
    machine->trace.reset(new VerilatedFstC);
    machine->top->trace(machine->trace.get(), 99);
    for (auto &lane : machine->lanes) lane->trace(machine->trace.get(), 99);
    machine->trace->open(path);
    machine->trace_start = 2 * start;
    machine->trace_stop = 2 * (start + clocks);
    return machine->trace->isOpen();
#else
    (void)machine, (void)path, (void)start, (void)clocks;
    return 0;
#endif
}

}  // extern "C"

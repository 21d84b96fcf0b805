// How long accesses to dynamic memory take.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// A channel of dynamic memory; times in picoseconds. Ref: alula.sim.memory.Dram, which says what
// each means and where its value is from; the order of the fields is the same there.
struct DramTiming {
    uint64_t clock;  // of the accelerator
    uint64_t access_bytes, burst, row_bytes, banks, interleave;
    uint64_t activate, precharge, column, row_open, read_to_precharge, write_recovery;
    uint64_t between_activates, four_activates, write_to_read, read_to_write;
    uint64_t refresh_every, refresh_takes, controller;
};

// In-order accesses to open rows. A row is opened as soon as its access is queued, so while other
// banks transfer; refresh stops all banks.
struct Dram {
    DramTiming t{};
    struct Bank {
        uint64_t row = ~0ull, opened = 0, usable = 0, closable = 0;
    };
    std::vector<Bank> banks;
    uint64_t bus = 0, activated[4] = {}, next_refresh = 0, oldest = 0;
    bool writing = false;

    void set(const DramTiming &timing) {
        *this = Dram();
        t = timing;
        banks.assign(t.banks, Bank());
        next_refresh = t.refresh_every;
    }

    bool on() const { return t.clock != 0; }

    // Move some bytes; return when the last of them is there.
    uint64_t access(uint64_t address, uint64_t bytes, bool write, uint64_t asked) {
        for (uint64_t end = address + bytes; address < end; address += t.access_bytes)
            one(address, write, asked);
        return bus;
    }

    void one(uint64_t address, bool write, uint64_t asked) {
        while (std::max(bus, asked) >= next_refresh) refresh();
        // Neighbours are in different bank groups; then columns, banks, rows.
        uint64_t unit = address / t.access_bytes;
        uint64_t group = unit % t.interleave;
        uint64_t column = unit / t.interleave;
        uint64_t per_row = t.row_bytes / t.access_bytes;
        uint64_t block = column / per_row;
        Bank &bank = banks[(block % (t.banks / t.interleave)) * t.interleave + group];
        uint64_t row = block / (t.banks / t.interleave);
        if (bank.row != row) open(bank, row, asked);
        uint64_t start = std::max(std::max(bank.usable, asked) + t.column, bus);
        if (write != writing)
            start = std::max(start, bus + (write ? t.read_to_write : t.write_to_read));
        writing = write;
        bus = start + t.burst;
        uint64_t closable = write ? bus + t.write_recovery : start - t.column + t.read_to_precharge;
        bank.closable = std::max(bank.closable, closable);
    }

    // What has not happened yet has time 0.
    static uint64_t after(uint64_t event, uint64_t time) { return event ? event + time : 0; }

    void open(Bank &bank, uint64_t row, uint64_t asked) {
        uint64_t when = asked;
        if (bank.row != ~0ull)
            when = std::max({when, bank.closable, bank.opened + t.row_open}) + t.precharge;
        when = std::max({when, after(bank.opened, t.row_open + t.precharge),
                         after(activated[(oldest + 3) & 3], t.between_activates),
                         after(activated[oldest], t.four_activates)});
        activated[oldest] = when;
        oldest = (oldest + 1) & 3;
        bank.row = row;
        bank.opened = when;
        bank.usable = when + t.activate;
        bank.closable = 0;
    }

    void refresh() {
        uint64_t start = std::max(bus, next_refresh) + t.precharge;
        next_refresh += t.refresh_every;
        bus = start + t.refresh_takes;
        for (Bank &bank : banks) {
            bank.row = ~0ull;
            bank.opened = 0;
            bank.usable = bank.closable = 0;
        }
        for (uint64_t &when : activated) when = std::min(when, bus);
        for (Bank &bank : banks) bank.usable = bus;
    }
};

// Drive both bodies of a slice, an adder or a chain alike; they and the arithmetic must agree.
#include <cstdint>
#include <cstdio>
#include <random>
#include "Vdut.h"
#include "verilated.h"

static Vdut *dut;
static std::mt19937_64 generator(1);

static void tick() {
    dut->clk = 0;
    dut->eval();
    dut->clk = 1;
    dut->eval();
}

static int fail(const char *what, long at) {
    std::printf("%s at %ld\n", what, at);
    return 1;
}

#ifdef SLICE
enum { NOTHING, CASCADE, OWN, HOLD, BIASED, MODES };
static const int CODES[] = {1, 3, 5, 4, 9};
struct Operands { int lo, hi, b, add, shared; };
static const int LATENCY = 4, ADD_DELAY = 2;

static int64_t signed48(uint64_t bits) { return int64_t(bits << 16) >> 16; }
static uint64_t low48(uint64_t bits) { return bits & 0xFFFFFFFFFFFFull; }

static Operands random_operands(bool modes) {
    uint64_t bits = generator();
    int hi = int(bits >> 9 & 255) - 128, lo = int(bits & 255) - 128;
    return {lo < 0 && hi == -128 ? 0 : lo, hi, int(bits >> 17 & 511) - 256,
            modes ? int((bits >> 26 & 255) % MODES) : NOTHING, int(bits >> 34 & 255)};
}

int main() {
    dut = new Vdut;
    Operands flight[LATENCY] = {};
    uint64_t own = 0, cascade = 0;
    dut->rst = 0;
    const long all = PAIR ? 1l << 25 : 1l << 17, random = 3000000;
    for (long at = 0; at < all + random; at++) {
        Operands now = random_operands(true);
        if (at < all) {
            now = {int(at & 255) - 128, PAIR ? int(at >> 17) - 128 : 0, int(at >> 8 & 511) - 256, NOTHING, 0};
        }
        dut->lo = now.lo & 255, dut->b = now.b & 511;
#if PAIR
        dut->hi = now.hi & 255;
#else
        now.hi = 0;
#endif
        dut->shared = now.shared;
        dut->add = CODES[flight[ADD_DELAY - 1].add];
        cascade = low48(generator());
        dut->cascade = cascade;
        tick();
        for (int i = LATENCY - 1; i > 0; i--) flight[i] = flight[i - 1];
        flight[0] = now;
        if (at < LATENCY) {
            own = dut->sum;
            continue;
        }
        const Operands &end = flight[LATENCY - 1];  // the cascade is that of its last clock
        int64_t joined = int64_t(end.hi) * (1 << 19) + end.lo + end.shared;
        joined = joined << 37 >> 37;  // 27 bits
        int64_t product = joined * end.b;
        switch (end.add) {
            case NOTHING: own = low48(product); break;
            case CASCADE: own = low48(cascade + product); break;
            case OWN: own = low48(own + product); break;
            case BIASED: own = low48((1 << 18) + product); break;
        }
        if (!dut->equal) return fail("the bodies differ", at);
        if (dut->sum != own) return fail("the sum is wrong", at);
    }
    std::printf("ok\n");
    return 0;
}
#elif defined(FIELDS)
static uint64_t total(uint64_t left, uint64_t right) {
    const int size = 48 / FIELDS;
    uint64_t mask = (1ull << size) - 1, result = 0;
    for (int at = 0; at < 48; at += size) {
        uint64_t one = left >> at & mask, other = right >> at & mask;
        result |= ((SUBTRACT ? one - other : one + other) & mask) << at;
    }
    return result;
}

int main() {
    dut = new Vdut;
    dut->rst = 0;
    uint64_t wanted[HELD + 1] = {};  // the last is what is out
    long enabled = 0;
    for (long at = 0; at < 3000000; at++) {
        dut->left = generator() >> 16, dut->right = generator() >> 16;
        dut->enable = (generator() & 3) != 0;
        if (dut->enable) {
            for (int i = HELD; i > 0; i--) wanted[i] = wanted[i - 1];
            wanted[0] = total(dut->left, dut->right);
            enabled++;
        }
        tick();
        if (enabled <= HELD) continue;
        if (!dut->equal) return fail("the bodies differ", at);
        if (dut->result != wanted[HELD]) return fail("the result is wrong", at);
    }
    std::printf("ok\n");
    return 0;
}
#else
template <typename Port> static void fill(Port &port, int bits) {
    for (int at = 0; at * 32 < bits; at++) {
        port[at] = uint32_t(generator());
        if (bits - at * 32 < 32) port[at] &= (1u << (bits - at * 32)) - 1;
    }
}

int main() {
    dut = new Vdut;
    dut->rst = 1;
    for (int i = 0; i < 40; i++) tick();
    dut->rst = 0;
    for (long at = 0; at < 200000; at++) {
        fill(dut->weights, 9 * SLOTS), fill(dut->lo, 8 * SLOTS), fill(dut->hi, 8 * SLOTS);
        dut->shared = generator() & 255;
        uint64_t bits = generator();
        if (at % 64 == 0) dut->accumulate = bits & 1;
        dut->valid = bits >> 1 & 1, dut->first = (bits >> 2 & 7) == 0;
        tick();
        if (at > 200 && !dut->equal) return fail("the chains differ", at);
    }
    std::printf("ok\n");
    return 0;
}
#endif

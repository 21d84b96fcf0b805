// What Verilator's waveform writer asks of zlib, for machines without its headers: blocks that are
// stored as they are. Ref: RFC 1950 and RFC 1951, section 3.2.4.
#pragma once
#include <cstdint>
#include <cstring>

using Bytef = unsigned char;
using uLong = unsigned long;
using uLongf = unsigned long;
constexpr int Z_OK = 0, Z_BUF_ERROR = -5;

inline uLong compressBound(uLong size) { return size + 5 * (size / 65535 + 1) + 6; }

inline int compress2(Bytef* target, uLongf* capacity, const Bytef* source, uLong size, int) {
    if (*capacity < compressBound(size)) return Z_BUF_ERROR;
    Bytef* at = target;
    *at++ = 0x78;
    *at++ = 0x01;
    uLong done = 0;
    do {
        const uLong length = size - done < 65535 ? size - done : 65535;
        *at++ = done + length == size;
        for (const uLong field : {length, ~length}) {
            *at++ = field & 255;
            *at++ = field >> 8 & 255;
        }
        std::memcpy(at, source + done, length);
        at += length;
        done += length;
    } while (done < size);
    uint32_t low = 1, high = 0;  // Adler-32
    for (uLong i = 0; i < size; ++i) {
        low = (low + source[i]) % 65521;
        high = (high + low) % 65521;
    }
    for (const uint32_t part : {high, low}) {
        *at++ = part >> 8;
        *at++ = part & 255;
    }
    *capacity = at - target;
    return Z_OK;
}

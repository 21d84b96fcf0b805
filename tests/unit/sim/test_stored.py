"""The stand-ins for lz4 and zlib write what those read."""

import subprocess
import zlib
from importlib.resources import files

import numpy as np
import pytest

from alula.sim.rtl.build import compiler

PROGRAM = r"""
#include <cstdio>
#include <initializer_list>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>
#include "lz4.h"
#include "zlib.h"
int main(int, char** argv) {
    const std::string in((std::istreambuf_iterator<char>(std::cin)), {});
    std::vector<char> out(compressBound(in.size()) + LZ4_compressBound(in.size()));
    uLongf size = out.size();
    if (argv[1][0] == 'z')
        compress2((Bytef*)out.data(), &size, (const Bytef*)in.data(), in.size(), 9);
    else
        size = LZ4_compress_default(in.data(), out.data(), in.size(), size);
    fwrite(out.data(), 1, size, stdout);
}
"""


def _literals(block):
    """Return the literals of an LZ4 block that has nothing else."""
    count, at = block[0] >> 4, 1
    if count == 15:
        while True:
            count, at = count + block[at], at + 1
            if block[at - 1] != 255:
                break
    assert block[0] & 15 == 0 and len(block) == at + count
    return block[at:]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    if compiler() is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("stored")
    (folder / "main.cpp").write_text(PROGRAM)
    subprocess.run([*compiler(), "-std=c++17", f"-I{files('alula.sim.rtl')}",
                    str(folder / "main.cpp"), "-o", str(folder / "main")], check=True)

    def run(kind, content):
        return subprocess.run([str(folder / "main"), kind], input=content, check=True,
                              capture_output=True).stdout
    return run


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 269, 270, 271, 65_535, 65_536, 200_000])
def test_stored(stored, size):
    content = np.random.default_rng(size).bytes(size)
    assert zlib.decompress(stored("z", content)) == content
    assert _literals(stored("l", content)) == content

"""The buffers that the vector unit works on: how long a read takes, where a word is."""

from amaranth.hdl import Cat

from alula.hw.isa import BLOCK

READ_LATENCY = 2  # clocks from an address to its data, for every buffer


def log2(number):
    """Return the logarithm of a power of two."""
    return number.bit_length() - 1


def words_of_block(arch):
    """Return the words of ``vector_width`` elements in a block."""
    return BLOCK // arch.vector_width


def words_of(arch, size):
    """Return the words that ``size`` elements take."""
    return (size + arch.vector_width - 1) >> log2(arch.vector_width)


def row_words(arch):
    return arch.vector_elements // arch.vector_width


def first_word(arch, block):
    """Return the address of a block's first word in a row, or in the parameter buffer."""
    return block << log2(words_of_block(arch))


def tail_mask(arch, size):
    """Return which elements of the last word are within ``size``."""
    rest = size[:log2(arch.vector_width)]
    return Cat(*((rest == 0) | (rest > i) for i in range(arch.vector_width)))


def spread(mask):
    """Return a mask of elements as one of bits."""
    return Cat(*(bit.replicate(32) for bit in mask))


def address_bits(arch):
    return (arch.rows * row_words(arch) - 1).bit_length()


def param_bits(arch):
    return (arch.param_elements // arch.vector_width - 1).bit_length()

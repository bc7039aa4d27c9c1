"""Bytes at an address, for compiled code: one at a time, or eight as a number whose lowest byte comes first.

numba's own indexing has no way to read eight bytes at once. Nothing here looks whether a place is inside an array:
whoever calls has to know. Made for x86-64 and ARM64, which are little-endian and read at any place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numba import extending, types
from numba.core import cgutils

__all__ = ["address", "byte", "first_bit", "number", "put_word", "word"]

_BYTE, _WORD = cgutils.int8_t, cgutils.intp_t


def _at(builder: Any, kind: Any, start: Any, place: Any) -> Any:
    return builder.inttoptr(builder.add(start, place), kind.as_pointer())


def _address(_typing: Any, data: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(array.data, _WORD)

    return types.int64(data), code


def _byte(_typing: Any, start: Any, place: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_at(builder, _BYTE, *arguments), align=1), _WORD)

    return types.int64(types.int64, types.int64), code


def _load_word(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    return builder.load(_at(builder, _WORD, *arguments), align=1)


def _number(_typing: Any, start: Any, place: Any) -> Any:
    return types.int64(types.int64, types.int64), _load_word


def _word(_typing: Any, start: Any, place: Any) -> Any:
    return types.uint64(types.int64, types.int64), _load_word


def _put_word(_typing: Any, start: Any, place: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        first, at, given = arguments
        builder.store(given, _at(builder, _WORD, first, at), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.uint64), code


def _first_bit(_typing: Any, value: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), code


_compile: Any = extending.intrinsic
# address(array): where its first byte is. The array must be in use for as long as the address is.
address = cast(Callable[[npt.NDArray[Any]], int], _compile(_address))
# byte, number, word (start, place): what is ``place`` bytes behind the address ``start``, the number as a signed one.
# put_word(start, place, word) writes there.
byte = cast(Callable[[int, int], int], _compile(_byte))
number = cast(Callable[[int, int], int], _compile(_number))
word = cast(Callable[[int, int], np.uint64], _compile(_word))
put_word = cast(Callable[[int, int, np.uint64], None], _compile(_put_word))
# first_bit(word): the lowest bit that is set, counted from 0; 64 where none is.
first_bit = cast(Callable[[np.uint64], int], _compile(_first_bit))

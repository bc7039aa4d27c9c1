"""Strict JSON (RFC 8259) in UTF-8, compiled: where values end, and what is none.

Bytes are looked at in words of eight, each a number whose lowest byte is the first. A sum or difference that tells of
a byte may mistake those above it, never those below, so the lowest mark is always right (Warren, "Hacker's Delight",
6-1). Every function returns −1 for what it does not take. A newline ends every line and is in no value, so none
looks further than a word behind it.
"""

from __future__ import annotations

import numpy as np

from replaylab.compiled import merged
from replaylab.frames.words import byte, first_bit, number, put_word, word

__all__ = ["is_null", "json_object", "plain_text", "skip_blanks", "utc_time"]

_TAB, _RETURN, _BLANK, _QUOTE, _ESCAPE = 9, 13, 32, 34, 92
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST, _COLON, _COMMA = 123, 125, 91, 93, 58, 44
_ZERO, _NINE, _MINUS, _PLUS, _POINT = 48, 57, 45, 43, 46
_MOST_DEPTH = 60
_MOST_DIGITS = 100
_NS = 1_000_000_000
_MONTHS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_TENS = np.array([10**power for power in range(10)], np.int64)


def _each(value: int) -> np.uint64:
    """Return a word of eight such bytes."""
    return np.uint64(value * 0x0101010101010101)


_ONES, _HIGH, _QUOTES, _ESCAPES, _BLANKS, _ZEROS = map(_each, (1, 128, _QUOTE, _ESCAPE, _BLANK, _ZERO))
_TO_HIGH = _each(128 - 10)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_TRUE, _NULL, _ALSE = (np.uint64(int.from_bytes(text, "little")) for text in (b"true", b"null", b"alse"))


@merged
def skip_blanks(data: int, place: int) -> int:
    """Return where white space ends; a newline is the end of the line and none of it."""
    mark = byte(data, place)
    while mark <= _BLANK and (mark in (_BLANK, _TAB, _RETURN)):
        place += 1
        mark = byte(data, place)
    return place


@merged
def is_null(data: int, place: int) -> bool:
    return bool(word(data, place) & _LOW_HALF == _NULL)


@merged
def plain_text(data: int, place: int) -> int:
    """Return where the quote after a text without escapes is."""
    while True:
        place = _next_mark(data, place)
        mark = byte(data, place)
        if mark == _QUOTE:
            return place
        if mark < 128:
            return -1
        place = _beyond_ascii(data, place)
        if place < 0:
            return -1


@merged
def _text_end(data: int, place: int) -> int:
    """Return what comes after the quote at the end of a text; escapes are allowed."""
    while True:
        place = _next_mark(data, place)
        mark = byte(data, place)
        if mark == _QUOTE:
            return place + 1
        if mark == _ESCAPE:
            place = _escaped(data, place + 1)
        elif mark < 128:
            return -1
        else:
            place = _beyond_ascii(data, place)
        if place < 0:
            return -1


@merged
def _next_mark(data: int, place: int) -> int:
    """Return the next quote, escape, control character or byte beyond ASCII."""
    while True:
        eight = word(data, place)
        quotes = eight ^ _QUOTES
        escapes = eight ^ _ESCAPES
        found = (
            ((quotes - _ONES) & ~quotes)
            | ((escapes - _ONES) & ~escapes)
            | ((eight - _BLANKS) & ~eight)
            | eight
        ) & _HIGH
        if found != 0:
            return place + (first_bit(found) >> 3)
        place += 8


@merged
def _escaped(data: int, place: int) -> int:
    """Return what comes after an escape, whose letter is at ``place``; −1 for none, and for halves of a pair."""
    mark = byte(data, place)
    # " / \ b f n r t
    if (
        mark == 34
        or mark == 47
        or mark == 92
        or mark == 98
        or mark == 102
        or mark == 110
        or mark == 114
        or mark == 116
    ):
        return place + 1
    if mark != 117:
        return -1
    for step in range(1, 5):
        digit = byte(data, place + step)
        if not (_ZERO <= digit <= _NINE or 65 <= digit <= 70 or 97 <= digit <= 102):
            return -1
    if byte(data, place + 1) | 32 == 100 and byte(data, place + 2) >= 56:
        return -1
    return place + 5


@merged
def _beyond_ascii(data: int, place: int) -> int:
    """Return what comes after a character of two to four bytes (Unicode standard, table 3-7)."""
    first, second = byte(data, place), byte(data, place + 1)
    if 0xC2 <= first <= 0xDF:
        return place + 2 if 0x80 <= second <= 0xBF else -1
    third = byte(data, place + 2)
    if 0xE0 <= first <= 0xEF:
        low = 0xA0 if first == 0xE0 else 0x80
        high = 0x9F if first == 0xED else 0xBF
        return place + 3 if low <= second <= high and 0x80 <= third <= 0xBF else -1
    if 0xF0 <= first <= 0xF4:
        low = 0x90 if first == 0xF0 else 0x80
        high = 0x8F if first == 0xF4 else 0xBF
        if low <= second <= high and 0x80 <= third <= 0xBF and 0x80 <= byte(data, place + 3) <= 0xBF:
            return place + 4
    return -1


@merged
def json_object(data: int, place: int) -> int:
    """Return what comes after the object that begins at ``place``.

    Not taken are more than 60 levels, and numbers of more than 100 digits or with an exponent of three.
    """
    # A bit for each level: 1 is an object, 0 a list.
    levels = 0
    depth = 0
    while True:
        mark = byte(data, place)
        if mark == _QUOTE:
            place = _text_end(data, place + 1)
            if place < 0:
                return -1
        elif mark == _MINUS or _ZERO <= mark <= _NINE:
            place = _number_end(data, place)
            if place < 0:
                return -1
        elif mark in (_OPEN, _OPEN_LIST):
            if depth == _MOST_DEPTH:
                return -1
            inside = 1 if mark == _OPEN else 0
            place = skip_blanks(data, place + 1)
            if byte(data, place) != (_CLOSE if inside else _CLOSE_LIST):
                levels = levels << 1 | inside
                depth += 1
                if inside:
                    place = _value_of_name(data, place)
                    if place < 0:
                        return -1
                continue
            place += 1
        else:
            four = word(data, place) & _LOW_HALF
            if four in (_TRUE, _NULL):
                place += 4
            elif mark == 102 and word(data, place + 1) & _LOW_HALF == _ALSE:
                place += 5
            else:
                return -1
        # Behind a value: brackets that close, then a comma or the end.
        while True:
            if depth == 0:
                return place
            place = skip_blanks(data, place)
            mark = byte(data, place)
            if mark == _COMMA:
                break
            if mark != (_CLOSE if levels & 1 else _CLOSE_LIST):
                return -1
            levels >>= 1
            depth -= 1
            place += 1
        place = skip_blanks(data, place + 1)
        if levels & 1:
            place = _value_of_name(data, place)
            if place < 0:
                return -1


@merged
def _value_of_name(data: int, place: int) -> int:
    """Return where the value of the name at ``place`` begins."""
    if byte(data, place) != _QUOTE:
        return -1
    place = _text_end(data, place + 1)
    if place < 0:
        return -1
    place = skip_blanks(data, place)
    if byte(data, place) != _COLON:
        return -1
    return skip_blanks(data, place + 1)


@merged
def _number_end(data: int, place: int) -> int:
    start = place
    if byte(data, place) == _MINUS:
        place += 1
    if byte(data, place) == _ZERO:
        place += 1
    else:
        digits = _digits_end(data, place)
        if digits == place:
            return -1
        place = digits
    if byte(data, place) == _POINT:
        digits = _digits_end(data, place + 1)
        if digits == place + 1:
            return -1
        place = digits
    if place - start > _MOST_DIGITS:
        return -1
    if byte(data, place) | 32 == 101:
        place += 1
        if byte(data, place) == _PLUS or byte(data, place) == _MINUS:
            place += 1
        digits = _digits_end(data, place)
        if digits == place or digits - place > 2:
            return -1
        place = digits
    return place


@merged
def _digits_end(data: int, place: int) -> int:
    while True:
        digits = word(data, place) ^ _ZEROS
        others = ((digits + _TO_HIGH) | digits) & _HIGH
        if others != 0:
            return place + (first_bit(others) >> 3)
        place += 8


@merged
def utc_time(data: int, place: int, size: int, clock: int) -> tuple[bool, int]:
    """Return whether a text is a time in UTC with seconds and up to nine decimals, and its nanoseconds since 1970.

    ``clock`` remembers the second that was read last, as text (three words) and as number: most lines of a log share it
    with the line before.
    """
    end = place + size
    if size >= 20 and byte(data, end - 1) == 90:
        end -= 1
    elif (
        size >= 25
        and byte(data, end - 6) == _PLUS
        and byte(data, end - 5) == _ZERO
        and byte(data, end - 4) == _ZERO
        and byte(data, end - 3) == _COLON
        and byte(data, end - 2) == _ZERO
        and byte(data, end - 1) == _ZERO
    ):
        end -= 6
    else:
        return False, 0
    first, second, third = word(data, place), word(data, place + 8), word(data, place + 11)
    if first != word(clock, 0) or second != word(clock, 8) or third != word(clock, 16):
        found = _whole_second(data, place)
        if found == _NO_SECOND:
            return False, 0
        put_word(clock, 0, first)
        put_word(clock, 8, second)
        put_word(clock, 16, third)
        put_word(clock, 24, np.uint64(found))
    whole = number(clock, 24) * _NS
    decimals = end - place - 20
    if decimals < 0:
        return end == place + 19, whole
    if decimals == 0 or decimals > 9 or byte(data, place + 19) != _POINT:
        return False, 0
    fraction = 0
    for step in range(decimals):
        digit = byte(data, place + 20 + step) - _ZERO
        if digit < 0 or digit > 9:
            return False, 0
        fraction = fraction * 10 + digit
    return True, whole + fraction * _TENS[9 - decimals]


_NO_SECOND = -(1 << 62)


@merged
def _whole_second(data: int, place: int) -> int:
    """Return the seconds since 1970 of ``2025-11-18T10:00:00``, in the years that nanoseconds can hold."""
    if (
        byte(data, place + 4) != _MINUS
        or byte(data, place + 7) != _MINUS
        or byte(data, place + 10) != 84
        or byte(data, place + 13) != _COLON
        or byte(data, place + 16) != _COLON
    ):
        return _NO_SECOND
    year = _two(data, place) * 100 + _two(data, place + 2)
    month, day = _two(data, place + 5), _two(data, place + 8)
    hour, minute, second = _two(data, place + 11), _two(data, place + 14), _two(data, place + 17)
    # What is no digit makes a number of more than two.
    if _two(data, place) > 99 or _two(data, place + 2) > 99 or year < 1678 or year > 2261:
        return _NO_SECOND
    if month < 1 or month > 12 or hour > 23 or minute > 59 or second > 59 or day < 1:
        return _NO_SECOND
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > _MONTHS[month] + (1 if leap and month == 2 else 0):
        return _NO_SECOND
    # Days since 1970 of a Gregorian date, with years that begin in March so that the leap day is their last.
    shifted = year - (1 if month <= 2 else 0)
    in_era = shifted % 400
    in_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = shifted // 400 * 146_097 + in_era * 365 + in_era // 4 - in_era // 100 + in_year - 719_468
    return days * 86_400 + hour * 3_600 + minute * 60 + second


@merged
def _two(data: int, place: int) -> int:
    """Return the number of two digits; 1000 where there are none."""
    tens, ones = byte(data, place) - _ZERO, byte(data, place + 1) - _ZERO
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else 1000

/* msgpack as msgspec writes it. Pure. The bytes may be hostile: every length is
   compared with what is there, nesting is bounded, and the first fault makes the
   cursor bad for good. */

#include "init.h"

#include <string.h>

enum { MAX_DEPTH = 32 };

struct cursor cursor_of(struct bytes raw)
{
    return (struct cursor){raw.at, raw.at + raw.size, false};
}

static void spoil(struct cursor *c)
{
    c->bad = true;
    c->at = c->end;
}

static uint64_t big_endian(struct cursor *c, size_t size)
{
    uint64_t value = 0;
    if (c->bad || (size_t)(c->end - c->at) < size) {
        spoil(c);
        return 0;
    }
    for (size_t i = 0; i < size; i++)
        value = value << 8 | *c->at++;
    return value;
}

static uint8_t first(struct cursor *c)
{
    return (uint8_t)big_endian(c, 1);
}

/* Every item takes a byte at least: a count beyond that is a lie. */
static uint32_t counted(struct cursor *c, uint64_t count, size_t bytes_each)
{
    if (c->bad || count > (size_t)(c->end - c->at) / bytes_each) {
        spoil(c);
        return 0;
    }
    return (uint32_t)count;
}

uint32_t take_map(struct cursor *c)
{
    uint8_t tag = first(c);
    if ((tag & 0xf0) == 0x80)
        return counted(c, tag & 0x0f, 2);
    if (tag == 0xde || tag == 0xdf)
        return counted(c, big_endian(c, tag == 0xde ? 2 : 4), 2);
    spoil(c);
    return 0;
}

uint32_t take_array(struct cursor *c)
{
    uint8_t tag = first(c);
    if ((tag & 0xf0) == 0x90)
        return counted(c, tag & 0x0f, 1);
    if (tag == 0xdc || tag == 0xdd)
        return counted(c, big_endian(c, tag == 0xdc ? 2 : 4), 1);
    spoil(c);
    return 0;
}

static struct bytes slice(struct cursor *c, uint64_t size)
{
    struct bytes found = {c->at, 0};
    if (c->bad || size > (size_t)(c->end - c->at)) {
        spoil(c);
        return (struct bytes){c->end, 0};
    }
    found.size = size;
    c->at += size;
    return found;
}

struct bytes take_text(struct cursor *c)
{
    uint8_t tag = first(c);
    if ((tag & 0xe0) == 0xa0)
        return slice(c, tag & 0x1f);
    switch (tag) {
    case 0xc4:
    case 0xd9:
        return slice(c, big_endian(c, 1));
    case 0xc5:
    case 0xda:
        return slice(c, big_endian(c, 2));
    case 0xc6:
    case 0xdb:
        return slice(c, big_endian(c, 4));
    }
    spoil(c);
    return (struct bytes){c->end, 0};
}

int64_t take_int(struct cursor *c)
{
    uint8_t tag = first(c);
    if (c->bad)
        return 0;
    if (tag < 0x80)
        return tag;
    if (tag >= 0xe0)
        return (int8_t)tag;
    switch (tag) {
    case 0xcc:
        return (int64_t)big_endian(c, 1);
    case 0xcd:
        return (int64_t)big_endian(c, 2);
    case 0xce:
        return (int64_t)big_endian(c, 4);
    case 0xcf: {
        uint64_t value = big_endian(c, 8);
        if (value > INT64_MAX)
            break;
        return (int64_t)value;
    }
    case 0xd0:
        return (int8_t)big_endian(c, 1);
    case 0xd1:
        return (int16_t)big_endian(c, 2);
    case 0xd2:
        return (int32_t)big_endian(c, 4);
    case 0xd3:
        return (int64_t)big_endian(c, 8);
    }
    spoil(c);
    return 0;
}

double take_number(struct cursor *c)
{
    if (c->bad || c->at == c->end || (*c->at != 0xca && *c->at != 0xcb))
        return (double)take_int(c);
    if (first(c) == 0xca) {
        uint32_t bits = (uint32_t)big_endian(c, 4);
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    uint64_t bits = big_endian(c, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

bool take_bool(struct cursor *c)
{
    uint8_t tag = first(c);
    if (tag != 0xc2 && tag != 0xc3)
        spoil(c);
    return tag == 0xc3;
}

bool is_nil(const struct cursor *c)
{
    return !c->bad && c->at < c->end && *c->at == 0xc0;
}

static void skip(struct cursor *c, int depth)
{
    if (c->bad || c->at == c->end || depth > MAX_DEPTH) {
        spoil(c);
        return;
    }
    uint8_t tag = *c->at;
    if (tag < 0x80 || tag >= 0xe0 || (tag >= 0xcc && tag <= 0xd3)) {
        if (tag == 0xcf) { /* take_int refuses the upper half, which is well-formed */
            c->at++;
            big_endian(c, 8);
        } else {
            take_int(c);
        }
    } else if ((tag & 0xe0) == 0xa0 || (tag >= 0xc4 && tag <= 0xc6) || (tag >= 0xd9 && tag <= 0xdb)) {
        take_text(c);
    } else if (tag == 0xca || tag == 0xcb) {
        take_number(c);
    } else if (tag == 0xc0) {
        c->at++;
    } else if (tag == 0xc2 || tag == 0xc3) {
        take_bool(c);
    } else if ((tag & 0xf0) == 0x90 || tag == 0xdc || tag == 0xdd) {
        for (uint32_t n = take_array(c); n && !c->bad; n--)
            skip(c, depth + 1);
    } else if ((tag & 0xf0) == 0x80 || tag == 0xde || tag == 0xdf) {
        for (uint32_t n = take_map(c); n && !c->bad; n--) {
            skip(c, depth + 1);
            skip(c, depth + 1);
        }
    } else {
        spoil(c); /* extensions: we have none */
    }
}

struct bytes take_raw(struct cursor *c)
{
    const uint8_t *start = c->at;
    skip(c, 0);
    return c->bad ? (struct bytes){c->end, 0} : (struct bytes){start, (size_t)(c->at - start)};
}

struct cursor field(struct bytes map, const char *key)
{
    struct cursor c = cursor_of(map);
    for (uint32_t n = take_map(&c); n && !c.bad; n--) {
        if (is_word(take_text(&c), key) && !c.bad)
            return c;
        take_raw(&c);
    }
    spoil(&c);
    return c;
}

struct bytes text_field(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    return is_nil(&c) ? (struct bytes){c.at, 0} : take_text(&c);
}

int64_t int_field(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    return take_int(&c);
}

double number_field(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    return take_number(&c);
}

bool is_word(struct bytes text, const char *word)
{
    return text.size == strlen(word) && !memcmp(text.at, word, text.size);
}

bool same(struct bytes a, struct bytes b)
{
    return a.size == b.size && !memcmp(a.at, b.at, a.size);
}

/* ── writing ── */

static void put(struct out *o, const void *data, size_t size)
{
    if (o->full || size > o->room - o->size) {
        o->full = true;
        return;
    }
    memcpy(o->buffer + o->size, data, size);
    o->size += size;
}

static void put_tagged(struct out *o, uint8_t tag, uint64_t value, size_t size)
{
    uint8_t bytes[9] = {tag};
    for (size_t i = 0; i < size; i++)
        bytes[1 + i] = (uint8_t)(value >> 8 * (size - 1 - i));
    put(o, bytes, 1 + size);
}

void put_map(struct out *o, uint32_t pairs)
{
    if (pairs < 16)
        put_tagged(o, (uint8_t)(0x80 | pairs), 0, 0);
    else
        put_tagged(o, 0xdf, pairs, 4);
}

void put_array(struct out *o, uint32_t items)
{
    if (items < 16)
        put_tagged(o, (uint8_t)(0x90 | items), 0, 0);
    else
        put_tagged(o, 0xdd, items, 4);
}

void put_text(struct out *o, struct bytes text)
{
    if (text.size < 32)
        put_tagged(o, (uint8_t)(0xa0 | text.size), 0, 0);
    else
        put_tagged(o, 0xdb, text.size, 4);
    put(o, text.at, text.size);
}

void put_str(struct out *o, const char *text)
{
    put_text(o, (struct bytes){(const uint8_t *)text, strlen(text)});
}

void put_bin(struct out *o, struct bytes data)
{
    put_tagged(o, 0xc6, data.size, 4);
    put(o, data.at, data.size);
}

void put_int(struct out *o, int64_t value)
{
    if (value >= 0 && value < 128)
        put_tagged(o, (uint8_t)value, 0, 0);
    else
        put_tagged(o, 0xd3, (uint64_t)value, 8);
}

void put_number(struct out *o, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_tagged(o, 0xcb, bits, 8);
}

void put_bool(struct out *o, bool value)
{
    put_tagged(o, value ? 0xc3 : 0xc2, 0, 0);
}

void put_nil(struct out *o)
{
    put_tagged(o, 0xc0, 0, 0);
}

void put_raw(struct out *o, struct bytes raw)
{
    put(o, raw.at, raw.size);
}

void put_plain(struct out *o, const char *text)
{
    put(o, text, strlen(text));
}

void put_json(struct out *o, struct bytes text)
{
    static const char hex[] = "0123456789abcdef";
    put(o, "\"", 1);
    for (size_t i = 0; i < text.size; i++) {
        uint8_t c = text.at[i];
        if (c == '"' || c == '\\') {
            put(o, (char[]){'\\', (char)c}, 2);
        } else if (c < 0x20) {
            put(o, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
        } else {
            put(o, &c, 1);
        }
    }
    put(o, "\"", 1);
}

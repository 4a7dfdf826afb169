/* Feeds the decoder of the compiled PID 1: each input is a length and so many bytes, each
   answer one character. Every input lies in memory of exactly its size, so that the
   sanitizer sees a read one byte beyond it. */

#include "init.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile size_t sum;

static void look_at(struct bytes text)
{
    for (size_t i = 0; i < text.size; i++)
        sum += text.at[i];
}

/* As serve.c goes through a Dispatch. */
static bool go_through(struct bytes all)
{
    static const char *const names[] = {"type", "spec", "files", "path", "limits", "env"};
    static uint8_t buffer[4096];
    struct out o = {buffer, 0, sizeof buffer, false};
    struct cursor c = cursor_of(all);
    look_at(take_raw(&c));
    bool whole = !c.bad;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct cursor at = field(all, names[i]);
        struct bytes inner = take_raw(&at);
        look_at(text_field(all, names[i]));
        sum += (size_t)int_field(all, names[i]);
        sum += number_field(inner, "timeout_s") > 1;
        struct cursor list = cursor_of(inner);
        for (uint32_t n = take_array(&list); n && !list.bad; n--) {
            struct bytes item = take_raw(&list);
            look_at(text_field(item, "path"));
            look_at(text_field(item, "data"));
            struct cursor flag = field(item, "executable");
            sum += take_bool(&flag);
        }
        struct cursor map = cursor_of(inner);
        for (uint32_t n = take_map(&map); n && !map.bad; n--) {
            struct bytes name = take_text(&map), value = take_text(&map);
            put_json(&o, name);
            put_text(&o, value);
            sum += same(name, value) + is_word(name, "A");
        }
        put_raw(&o, inner);
    }
    return whole;
}

int main(void)
{
    uint32_t size;
    setvbuf(stdout, NULL, _IONBF, 0);
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *data = malloc(size ? size : 1);
        if (fread(data, 1, size, stdin) != size)
            return 2;
        putchar(go_through((struct bytes){data, size}) ? '1' : '0');
        free(data);
    }
    return 0;
}

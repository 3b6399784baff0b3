/* SPDX-License-Identifier: MIT */
/*
 * Words that a guest brought along (paths, its kernel's command line), made fit for a terminal: a
 * source chose them, and a terminal obeys what it is sent.
 */
#ifndef GODWIT_INSTANCE_TEXT_H
#define GODWIT_INSTANCE_TEXT_H

#include <stddef.h>

/*
 * text into buf of len bytes with "?" in the place of every control character (those of ASCII and
 * those that Unicode has from U+0080 on) and of every byte that is not UTF-8. What does not fit is
 * left off. Returns buf.
 */
const char *text_plain(char *buf, size_t len, const char *text);

#endif

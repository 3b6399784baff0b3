/* SPDX-License-Identifier: MIT */
/*
 * The serial contract of the small bare payloads that only tests here boot; the terms are those of
 * guest-tests/bare/contract.h.
 *
 * --- serial: prints numbered lines without a pause, and says what it receives ---
 *
 *     serial n=<number, from 1> check=<16 hex digits>     check: SERIAL_CHECK(n)
 *     serial got=<byte, decimal> count=<bytes received so far>
 *     serial done n=<number of the last line>
 *
 * `q` ends it. Options: report=N  a numbered line only every N milliseconds (0: no pause)
 *
 * --- touch: stores to all of RAM, a word here and there, and compares later ---
 *
 *     touch ready words=.. high=.. top=0x..      high: how many of them above 4 GiB; top: the last
 *     touch verify words=.. errors=..            after `v`
 *     touch error addr=0x.. want=0x.. got=0x..
 *     touch done words=.. errors=..              after `q`
 *
 * Options: stride=SIZE  from one word to the next (16M)
 *
 * --- reset: ends as the byte says that it receives ---
 *
 *     reset ready
 *     t  triple fault        k  keyboard controller       c  port 0xcf9        q  power-off
 *
 * It runs without the runtime of the others and does not look at its command line.
 */
#ifndef GODWIT_PAYLOAD_CONTRACT_H
#define GODWIT_PAYLOAD_CONTRACT_H

#define SERIAL_CHECK(n) (((n) + 1) * 0x9e3779b97f4a7c15ul)
#define SERIAL_FMT "serial n=%lu check=%016lx"
#define SERIAL_GOT_FMT "serial got=%lu count=%lu"
#define SERIAL_DONE_FMT "serial done n=%lu"

#define TOUCH_READY_FMT "touch ready words=%lu high=%lu top=0x%lx"
#define TOUCH_VERIFY_FMT "touch verify words=%lu errors=%lu"
#define TOUCH_ERROR_FMT "touch error addr=0x%lx want=0x%lx got=0x%lx"
#define TOUCH_DONE_FMT "touch done words=%lu errors=%lu"

#endif

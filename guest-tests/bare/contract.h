/* SPDX-License-Identifier: MIT */
/*
 * The serial contract of the bare payloads: what they are told on the command line, what they
 * print on COM1, and which bytes sent to COM1 they obey.  Shared by the payloads and by the tests
 * that boot them, so it holds nothing but macros.
 *
 * Lines end in "\n".  A line starts with the payload's name; what follows is a word or
 * key=value pairs, separated by one space.  The *_FMT strings serve printf in the payload and
 * sscanf in the test (unsigned long for %lu and %lx; no newline in them); one with %s in it is for
 * printf only, as a string may hold spaces and has no length.  New pairs may be appended to a line
 * later, so a reader looks keys up by name or matches a prefix.
 *
 * The last line of a run is either
 *
 *     <name> done ...      the payload has ended as asked; it powers off
 *     <name> panic ...     it cannot go on; it powers off
 *
 * and, for payloads that a host may not be able to run, `<name> skip why="..."` followed by
 * `<name> done`.  A payload that neither prints such a line nor reports is stuck.
 *
 * Command line: space-separated key=value.  Sizes and counts take the suffixes K, M, G (powers of
 * 1024).  Unknown keys are ignored (loaders add their own); a value that cannot be read is a panic.
 * Understood by every payload:
 *
 *     ring=0|3        run the payload in this ring; without it the payload measures ring 0 and
 *                     leaves it where the host emulates it
 *     tsc_khz=N       frequency of the TSC, instead of what the platform says
 *     secs=N          end by itself after N seconds as if `q` had come; 0, the default: never
 *                     (hello, which ends at once anyhow, does not look at it)
 */
#ifndef GODWIT_BARE_CONTRACT_H
#define GODWIT_BARE_CONTRACT_H

/* --- Every payload --- */

/* An exception: vector, its error code, where, the faulting address, and the ring it came from. */
#define BARE_PANIC_TRAP_FMT "panic vector=%lu err=0x%lx rip=0x%lx cr2=0x%lx ring=%lu"
/* Anything else: `<name> panic why="..."`. */
#define BARE_PANIC_WHY_FMT "panic why=\"%s\""
/* The host cannot run this payload: `<name> skip why="..."`, then `<name> done`. */
#define BARE_SKIP_FMT "skip why=\"%s\""

/* `<name> error ...` lines that a payload prints at most; it goes on counting. */
#define BARE_MAX_ERRORS 20

/* Bytes to send to COM1. A payload looks for one about every 5 ms. */
#define BARE_CMD_RESET 'z'  /* forget the gaps seen so far (dirty, timer, virtio) */
#define BARE_CMD_REPORT 'r' /* print the periodic line now */
#define BARE_CMD_GAPS 'g'   /* print the latest gaps one by one (dirty) */
#define BARE_CMD_VERIFY 'v' /* check everything now (dirty, smp, fpu, virtio) */
#define BARE_CMD_FLAT                                                                              \
	'f'		    /* from now on flat out whatever rate= says; again: as it says (dirty) \
			     */
#define BARE_CMD_REBOOT 'b' /* reset the machine, whatever is under way (virtio) */
#define BARE_CMD_QUIT 'q'   /* check everything, print `done`, power off */

/*
 * --- hello ---
 *
 *     hello cmdline="<as received>" ram=<bytes> ring=<0|3> tsc_khz=<n> tsc_from=<word> cpus=<n>
 *           ring0_cycles=<n>                            (all on one line)
 *     hello done
 *
 * ram: what the memory map calls RAM. cpus: what the MADT lists as usable; 1 without one.
 * ring0_cycles: TSC cycles that one turn of a two-instruction loop takes in ring 0; thousands where
 * the host emulates ring 0.
 * The command line is printed as it came; it ends at the last `" ram=` of the line.
 * With echo=1 hello sends back what it receives, byte for byte, until `q`.
 */
#define BARE_HELLO_FMT                                                                             \
	"hello cmdline=\"%s\" ram=%lu ring=%lu tsc_khz=%lu tsc_from=%s cpus=%lu ring0_cycles=%lu"

/*
 * --- dirty ---
 *
 *     ws=SIZE         working set: pages with content that can be checked (64M)
 *     hot=SIZE        the first part of it, which is rewritten round and round (= ws)
 *     rate=SIZE       bytes of pages rewritten in a second, all CPUs together; 0: flat out (0)
 *     catch_up=US     of rewriting that may be caught up with after a pause, where there is a rate
 *                     (10000)
 *     kind=KIND       how a page is rewritten (new):
 *           new         wholly new pseudo-random content each time
 *           same        the same content stored again
 *           few         8 bytes of the page change, at a place that moves
 *           zero        random content A, all zeros, A, zeros, ...
 *           flip        content A, content B, A, B, ...
 *           idle        nothing is rewritten; the CPUs spin
 *     content=random|text|zero   what pages hold: nothing that compresses, what compresses to about
 *                     0.4, or zeros, of which no two generations differ (random)
 *     check=sample|full   how much of a page's old content is checked before it is rewritten:
 *                     eight words, of which one at least differs between any two generations next
 *                     to each other, or all (sample when flat out, full when rate= is given)
 *     cpus=N          CPUs that share the working set (1)
 *     writers=N       of these, how many share the part that is rewritten; the rest spins (= cpus)
 *     seed=N          of all content (1)
 *     report=SECONDS  between two periodic lines; 0: none (1)
 *     secs=N
 *
 * Output:
 *
 *     dirty ready ws=<bytes> hot=<bytes> kind=<kind> ring=<0|3> cpus=<n> tsc_khz=<n>
 *     dirty t_ms=.. writes=.. mib_s=.. gap_us=.. errors=.. gap_at_ms=.. io_gap_us=..
 *     dirty gaps <us>@<us> ...
 *     dirty verify pages=.. errors=..
 *     dirty done writes=.. gap_us=.. errors=..
 *     dirty error page=.. want_gen=.. found=<gen|?> offset=.. want=0x.. got=0x..
 *     dirty error clock cpu=.. back_ns=..
 *     dirty error table page=.. gen=0x.. copy=0x..
 *     dirty error count cpu=.. writes=.. table=..
 *
 * t_ms counts from `ready`. writes counts pages rewritten; mib_s is pages rewritten since the last
 * line, in MiB a second of time passed, pauses included. errors counts all errors since the start;
 * the first BARE_MAX_ERRORS are printed. `done` is printed after a full verification (which
 * has its own verify line before it); errors= of `verify` is what that pass alone found.
 *
 * gap_us is the longest time between two consecutive readings of the clock by the same CPU since
 * the start or the last `z`, whichever CPU saw it: what the guest itself saw of a pause. A CPU
 * reads the clock after every page. Port I/O for the console is covered too, byte by byte, less
 * the time such an access takes in the best case; io_gap_us is the longest gap that had port I/O
 * in it. gap_at_ms is when (t_ms) the longest gap ended.
 *
 * gaps: the latest gaps of the boot processor of more than 500 us, 256 at most and the latest
 * first: how long, and when it ended, counted from `ready`.
 *
 * want_gen is the generation the page should have, found the one nearby whose content is there.
 */
#define BARE_DIRTY_READY_FMT "dirty ready ws=%lu hot=%lu kind=%s ring=%lu cpus=%lu tsc_khz=%lu"
#define BARE_DIRTY_REPORT_FMT                                                                      \
	"dirty t_ms=%lu writes=%lu mib_s=%lu gap_us=%lu errors=%lu gap_at_ms=%lu io_gap_us=%lu"
#define BARE_DIRTY_GAPS "dirty gaps"
#define BARE_DIRTY_GAP_FMT " %lu@%lu"
#define BARE_DIRTY_VERIFY_FMT "dirty verify pages=%lu errors=%lu"
#define BARE_DIRTY_DONE_FMT "dirty done writes=%lu gap_us=%lu errors=%lu"
#define BARE_DIRTY_ERROR "dirty error "

/*
 * --- smp ---
 *
 *     cpus=N          CPUs to use (all that the MADT lists)
 *     pages=N         pages each CPU owns, checks and rewrites (16)
 *     report=SECONDS  (1)
 *     secs=N
 *
 * Output:
 *
 *     smp cpus=<n> ring=<0|3>
 *     smp tick=.. min=.. max=.. errors=.. ipis=..
 *     smp verify rounds=.. errors=..
 *     smp done rounds=.. errors=.. ipis=..
 *     smp error page cpu=.. page=.. offset=.. want=0x.. got=0x..
 *     smp error pair cpu=..              two words kept under a lock disagree
 *     smp error sum want=.. got=..       shared counters against each CPU's own
 *     smp error tsc cpu=.. back_ns=..    a CPU reads an earlier clock than another before it
 *     smp error ipi cpu=.. to=..         an interrupt sent to another CPU did not arrive
 *     smp error stalled cpu=..           no round in five seconds of the boot CPU's running time
 *
 * The first line is printed when all CPUs run. A round is one pass of a CPU over its pages; min and
 * max are the least and the most rounds a CPU has done since the last tick line. errors of `verify`
 * is, as everywhere but with dirty, the count since the start.
 */
#define BARE_SMP_READY_FMT "smp cpus=%lu ring=%lu"
#define BARE_SMP_TICK_FMT "smp tick=%lu min=%lu max=%lu errors=%lu ipis=%lu"
#define BARE_SMP_VERIFY_FMT "smp verify rounds=%lu errors=%lu"
#define BARE_SMP_DONE_FMT "smp done rounds=%lu errors=%lu ipis=%lu"
#define BARE_SMP_ERROR "smp error "

/*
 * --- fpu ---
 *
 *     vectors=sse|avx|avx512   the widest registers to use (the widest there are)
 *     cpus=N          (1)
 *     report=SECONDS  (1)
 *     seed=N          (1)
 *     secs=N
 *
 * Output:
 *
 *     fpu ready x87=1 sse=1 avx=<0|1> avx512=<0|1> ring=<0|3> cpus=<n>
 *     fpu checks=.. errors=..
 *     fpu done checks=.. errors=..
 *     fpu error cpu=.. reg=<st|mxcsr|fcw|fsw|vec|k><n> want=0x.. got=0x..
 *
 * A check covers all registers, which were held for a millisecond. An error shows the first eight
 * bytes that differ, at a multiple of eight bytes into the register.
 */
#define BARE_FPU_READY_FMT "fpu ready x87=%lu sse=%lu avx=%lu avx512=%lu ring=%lu cpus=%lu"
#define BARE_FPU_REPORT_FMT "fpu checks=%lu errors=%lu"
#define BARE_FPU_DONE_FMT "fpu done checks=%lu errors=%lu"
#define BARE_FPU_ERROR "fpu error "

/*
 * --- timer ---
 *
 *     lapic=deadline|periodic|off     (deadline where the CPU has it, else periodic)
 *     pit=auto|ioapic|pic|off         (auto: the I/O APIC, else the PICs, else none)
 *     hz=N            ticks a second of each timer, 20 to 1000 (100)
 *     idle=spin|halt  what the CPU does between ticks; halt only in ring 0 (spin)
 *     report=SECONDS  (1)
 *     secs=N
 *
 * Output:
 *
 *     timer ready src=<deadline|periodic|none> pit=<ioapic|pic|none> hz=.. ring=<0|3>
 *     timer ticks=.. late_max_us=.. lost=.. lapic=.. pit=.. t_ms=..
 *     timer done ticks=.. late_max_us=.. lost=.. lapic=.. pit=.. t_ms=..
 *     timer error lost src=<source> ticks=..
 *     timer skip why="..."
 *
 * ticks is lapic plus pit; t_ms counts from `ready`, by the TSC. late_max_us is the most by which a
 * tick came later than one period after the one before it, or after its deadline, since the start
 * or the last `z`; a pause of the machine shows in it. lost counts how often a timer fell silent
 * for ten periods and a second of running time; pauses of the machine do not count.
 */
#define BARE_TIMER_READY_FMT "timer ready src=%s pit=%s hz=%lu ring=%lu"
#define BARE_TIMER_REPORT_FMT "timer ticks=%lu late_max_us=%lu lost=%lu lapic=%lu pit=%lu t_ms=%lu"
#define BARE_TIMER_DONE_FMT                                                                        \
	"timer done ticks=%lu late_max_us=%lu lost=%lu lapic=%lu pit=%lu t_ms=%lu"
#define BARE_TIMER_ERROR "timer error "

/*
 * --- virtio ---
 *
 * Drives all virtio-mmio disks that it finds in the slots from 0xd0000000 on, and a random number
 * generator. What is written to a disk, and in which order, is in sector.h.
 *
 *     seed=N          of all content; disk i has seed N + i (1)
 *     sectors=N       how many of each disk to use, from the first on (all)
 *     block=N         sectors of a chunk, the unit of a request: 1 to 128 (8)
 *     depth=N         requests under way on each disk, 1 to 64 (8)
 *     rate=SIZE       bytes written a second on each disk; 0: flat out (0)
 *     flush_every=N   writes between two flushes of a disk; 0: none but at the end (64)
 *     from=N          N writes of the sequence have been done by a guest before (0)
 *     retry=on|off    send what ended with an I/O error once more, until it does not (off)
 *     mem=SIZE        memory that is rewritten meanwhile, as dirty does, each page wholly checked
 *                     before (0: none)
 *     mem_rate=SIZE   bytes of it rewritten in a second (4M)
 *     indirect=on|off, event_idx=on|off    of the ring's features, take it if offered (on)
 *     report=SECONDS  (1)
 *     secs=N
 *
 * Output:
 *
 *     virtio disk=.. slot=.. capacity=.. block=.. chunks=.. seed=.. ro=.. flush=.. depth=..
 *         serial=".."                                  (all on one line)
 *     virtio ready disks=.. rng=<0|1> ring=<0|3> tsc_khz=..
 *     virtio t_ms=.. writes=.. reads=.. flushes=.. refused=.. rng=.. gap_us=.. slow_us=.. errors=..
 *     virtio durable disk=.. n=..
 *     virtio verify disk=.. n=.. sectors=.. errors=..
 *     virtio memory pages=.. writes=.. errors=..   (with mem=, after the disks')
 *     virtio done writes=.. reads=.. flushes=.. refused=.. rng=.. gap_us=.. errors=..
 *     virtio error status disk=.. op=<read|write|flush|id> chunk=.. status=..
 *     virtio error content disk=.. sector=.. want_gen=.. gen=.. sound=<0|1> seed=.. number=..
 *     virtio error kept disk=..                    (as content) memory has changed since
 *     virtio error length disk=.. chunk=.. len=..
 *     virtio error rng len=..
 *     virtio error memory page=.. want_gen=.. offset=.. want=0x.. got=0x..
 *
 * `durable`: the disk has said that all writes of the sequence before number n are durable, by
 * completing a flush, or the writes themselves where it has no flushes. n of `verify` is how many
 * writes there have been, all of them durable by then unless there are errors. retry=on is for
 * disks whose errors lose nothing: what has failed is said, and done all the same. To a read-only
 * disk nothing is written but what it has to refuse; refused counts that. rng is bytes got. gap_us
 * is as with dirty; slow_us is the longest time a request took, pauses included.
 */
#define BARE_VIRTIO_DISK_FMT                                                                       \
	"virtio disk=%lu slot=%lu capacity=%lu block=%lu chunks=%lu seed=%lu ro=%lu flush=%lu "    \
	"depth=%lu serial=\"%s\""
#define BARE_VIRTIO_READY_FMT "virtio ready disks=%lu rng=%lu ring=%lu tsc_khz=%lu"
#define BARE_VIRTIO_REPORT_FMT                                                                     \
	"virtio t_ms=%lu writes=%lu reads=%lu flushes=%lu refused=%lu rng=%lu gap_us=%lu "         \
	"slow_us=%lu errors=%lu"
#define BARE_VIRTIO_DURABLE_FMT "virtio durable disk=%lu n=%lu"
#define BARE_VIRTIO_VERIFY_FMT "virtio verify disk=%lu n=%lu sectors=%lu errors=%lu"
#define BARE_VIRTIO_MEMORY_FMT "virtio memory pages=%lu writes=%lu errors=%lu"
#define BARE_VIRTIO_DONE_FMT                                                                       \
	"virtio done writes=%lu reads=%lu flushes=%lu refused=%lu rng=%lu gap_us=%lu errors=%lu"
#define BARE_VIRTIO_ERROR "virtio error "

/*
 * --- hostile ---
 *
 * Does to each virtio-mmio device what no driver does: rings that are nowhere, chains that go in
 * circles, leave RAM, or are longer than their ring, descriptors that contradict themselves. Each
 * time the device has to ask for its reset (or, where it may, to do as it is told), has to store
 * into nothing but what it was given, and has to work after the reset.
 *
 *     rounds=N        over all devices; 0: until `q` (1)
 *     secs=N
 *
 * Output:
 *
 *     hostile device slot=.. id=.. queue=.. tried=.. asked=.. works=.. errors=..
 *     hostile error slot=.. id=.. queue=.. what="..." why="..."
 *     hostile done devices=.. tried=.. errors=..
 *
 * A line of `device` for each queue that is tried, after which `q` is looked for. asked counts how
 * often the device asked for its reset, works how often an honest request was answered after that.
 * devices= of `done` is of the last round.
 */
#define BARE_HOSTILE_DEVICE_FMT                                                                    \
	"hostile device slot=%lu id=%lu queue=%lu tried=%lu asked=%lu works=%lu errors=%lu"
#define BARE_HOSTILE_DONE_FMT "hostile done devices=%lu tried=%lu errors=%lu"
#define BARE_HOSTILE_ERROR "hostile error "

/*
 * --- blkbench ---
 *
 * Keeps the first virtio-mmio disk busy, in godwit or in QEMU's microvm, and counts. Every 4 KiB of
 * the disk must start with BLKBENCH_STAMP plus their number (of 4 KiB, from 0), in 8 bytes; that is
 * what it looks for in each read and what it writes, so a disk stays as it is.
 *
 *     op=read|write   (read)
 *     order=random|sequential     the sequence goes round (random)
 *     size=SIZE       of a request: 4K to 1M (4K)
 *     depth=N         requests under way, 1 to 64 (1)
 *     warm_ms=N       not counted (300)
 *     ms=N            counted (1000)
 *     seed=N          of random places (1)
 *
 * Output:
 *
 *     blkbench ready capacity=<sectors> size=.. depth=.. ring=<0|3> tsc_khz=<n>
 *     blkbench go                        from here on it counts
 *     blkbench result requests=.. bytes=.. ns=.. kicks=.. slow_us=.. errors=..
 *     blkbench done errors=..
 *     blkbench error status place=.. status=..      place: of the request, in 4 KiB
 *     blkbench error stamp place=.. want=0x.. got=0x..
 *
 * requests and bytes are what was completed in ns nanoseconds of its own clock; kicks is how often
 * the device wanted to be notified of one; slow_us is the longest that one took.
 */
#define BLKBENCH_STAMP 0x6764777462656e63ul
#define BLKBENCH_UNIT 4096ul
#define BARE_BLKBENCH_READY_FMT                                                                    \
	"blkbench ready capacity=%lu size=%lu depth=%lu ring=%lu tsc_khz=%lu"
#define BARE_BLKBENCH_GO "blkbench go"
#define BARE_BLKBENCH_RESULT_FMT                                                                   \
	"blkbench result requests=%lu bytes=%lu ns=%lu kicks=%lu slow_us=%lu errors=%lu"
#define BARE_BLKBENCH_DONE_FMT "blkbench done errors=%lu"
#define BARE_BLKBENCH_ERROR "blkbench error "

/*
 * --- netbench ---
 *
 * Sends frames to a program at the other end of the first virtio-mmio network device, or takes
 * frames from it, and counts. What is in a frame is in netframe.h.
 *
 *     mode=send|receive|ping      whole frames one way, or small ones to and fro (send)
 *     frame=large|mtu|small       how long (mtu); large ones are for the device to cut up
 *     depth=N         ping: frames that are not answered yet; else: that are not acknowledged, 1 to
 *                     NETFRAME_MAX_DEPTH (1)
 *     warm_ms=N       not counted (300)
 *     ms=N            counted (1000)
 *
 * Output:
 *
 *     netbench ready frame=<bytes> depth=.. ring=<0|3> tsc_khz=<n>
 *     netbench go                        from here on it counts
 *     netbench result frames=.. bytes=.. ns=.. kicks=.. slow_us=.. errors=..
 *     netbench done errors=..
 *     netbench error <frame|order|content> want=.. got=..
 *
 * frames and bytes are what the other end has acknowledged, what was received, or what was
 * answered. slow_us is the longest time without any.
 */
#define BARE_NETBENCH_READY_FMT "netbench ready frame=%lu depth=%lu ring=%lu tsc_khz=%lu"
#define BARE_NETBENCH_GO "netbench go"
#define BARE_NETBENCH_RESULT_FMT                                                                   \
	"netbench result frames=%lu bytes=%lu ns=%lu kicks=%lu slow_us=%lu errors=%lu"
#define BARE_NETBENCH_DONE_FMT "netbench done errors=%lu"
#define BARE_NETBENCH_ERROR "netbench error "

#endif

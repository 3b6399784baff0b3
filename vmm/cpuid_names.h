/* SPDX-License-Identifier: MIT */
/* Names of CPUID feature bits, as /proc/cpuinfo has them. */
#ifndef GODWIT_CPUID_NAMES_H
#define GODWIT_CPUID_NAMES_H

#include <stddef.h>
#include <stdint.h>

enum cpuid_reg {
	CPUID_EAX,
	CPUID_EBX,
	CPUID_ECX,
	CPUID_EDX,
};

/* A register that holds nothing but feature bits: a guest's set bits must be set on the host. */
struct cpuid_word {
	uint32_t function;
	uint32_t index;
	enum cpuid_reg reg;
	const char *const *names; /* 32, NULL where the bit has none */
};

extern const struct cpuid_word cpuid_words[];
extern const size_t cpuid_n_words;

#endif

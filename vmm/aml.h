/* SPDX-License-Identifier: MIT */
/*
 * A small builder of ACPI Machine Language (ACPI 6.x chapter 20), enough to describe devices.
 *
 * Objects are appended in order. What contains others is opened, filled and closed again:
 *
 *	aml_device(a, "COM1");
 *	aml_name(a, "_HID");
 *	aml_eisaid(a, "PNP0501");
 *	aml_name(a, "_CRS");
 *	aml_resources(a);
 *	aml_res_io(a, 0x3f8, 8);
 *	aml_res_irq(a, 4);
 *	aml_end(a);
 *	aml_end(a);
 *
 * Errors are latched: the caller looks once, at the end, in err. Names are checked, lengths are
 * filled in when an object is closed.
 */
#ifndef GODWIT_AML_H
#define GODWIT_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_MAX_DEPTH 8

struct aml {
	uint8_t *data;
	size_t len;
	size_t cap;
	unsigned depth;
	struct {
		size_t start; /* of the contents */
		bool resources;
	} open[AML_MAX_DEPTH];
	int err; /* 0; -EINVAL (name, nesting, value), -ENOMEM, -EMSGSIZE: the first one counts */
};

void aml_init(struct aml *a);
void aml_free(struct aml *a);

/* Closes what was opened last. */
void aml_end(struct aml *a);

/*
 * Opened by these. A name is segments of one to four of A-Z, 0-9 and _, joined by dots, after an
 * optional backslash for the root or carets for parents.
 */
void aml_scope(struct aml *a, const char *name);
void aml_device(struct aml *a, const char *name);
void aml_method(struct aml *a, const char *name, unsigned n_args, bool serialized);
void aml_package(struct aml *a, uint8_t n_elements);
void aml_resources(struct aml *a); /* a buffer; the end tag is added by aml_end() */

/* Gives the object that comes next a name. */
void aml_name(struct aml *a, const char *name);

/* Return statement of a method; its value comes next. */
void aml_return(struct aml *a);

/* Values. */
void aml_integer(struct aml *a, uint64_t value);
void aml_string(struct aml *a, const char *text); /* ASCII */
void aml_eisaid(struct aml *a, const char *id);	  /* "PNP0501": three letters, four hex digits */

/* Resource descriptors (ACPI 6.x section 6.4), between aml_resources() and aml_end(). */
void aml_res_io(struct aml *a, uint16_t base, uint8_t len); /* fixed ports, 16-bit decode */
void aml_res_irq(struct aml *a, unsigned irq); /* ISA interrupt 0 to 15: edge, high, exclusive */
void aml_res_memory32(struct aml *a, uint32_t base, uint32_t len, bool writable);

enum aml_interrupt {
	AML_EDGE_HIGH,
	AML_EDGE_HIGH_SHARED,
	AML_LEVEL_HIGH,
};
void aml_res_interrupt(struct aml *a, uint32_t gsi, enum aml_interrupt mode);

#endif

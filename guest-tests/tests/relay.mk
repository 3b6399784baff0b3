# SPDX-License-Identifier: MIT
# Tests that put themselves between the two sides of a migration, or speak its protocol: the relay,
# and what of godwit they need to make frames.

relay_out := $(B)/guest-tests/tests
relay_users := $(patsubst guest-tests/tests/%.c,$(relay_out)/%, \
	$(wildcard guest-tests/tests/test-fault*.c guest-tests/tests/test-hostile*.c \
		guest-tests/tests/test-bad-input*.c guest-tests/tests/test-migrate-rate.c \
		guest-tests/tests/test-resume.c guest-tests/tests/test-decode.c))

$(relay_users): $(relay_out)/relay.o $(relay_out)/faults.o $(B)/libgodwit.a
$(relay_out)/test-migrate-rate: $(relay_out)/meter.o

-include $(relay_out)/relay.d $(relay_out)/faults.d $(relay_out)/meter.d

# SPDX-License-Identifier: MIT
# build/tools/decode-stream. Included by the top-level Makefile.

decode_out := $(B)/tools/decode
decode_objs := $(patsubst tools/decode/%.c,$(decode_out)/%.o,$(wildcard tools/decode/*.c))

tools: $(B)/tools/decode-stream
$(B)/tools/decode-stream: $(decode_objs) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

-include $(decode_objs:.o=.d)

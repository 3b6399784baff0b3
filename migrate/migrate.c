/* SPDX-License-Identifier: MIT */
#include "migrate.h"

const char *migrate_phase_name(enum migrate_phase p)
{
	switch (p) {
	case MIGRATE_IDLE:
		return "idle";
	case MIGRATE_LISTENING:
		return "listening";
	case MIGRATE_CONNECTING:
		return "connecting";
	case MIGRATE_HANDSHAKE:
		return "handshake";
	case MIGRATE_PRECOPY:
		return "pre-copy";
	case MIGRATE_STOPCOPY:
		return "stop-and-copy";
	case MIGRATE_READY:
		return "ready";
	case MIGRATE_COMMIT:
		return "commit";
	case MIGRATE_DONE:
		return "done";
	}
	return "?";
}

const char *migrate_status_name(enum migrate_status s)
{
	switch (s) {
	case MIGRATE_COMPLETED:
		return "completed";
	case MIGRATE_FAILED:
		return "failed";
	case MIGRATE_CANCELLED:
		return "cancelled";
	case MIGRATE_UNCERTAIN:
		return "uncertain";
	}
	return "?";
}

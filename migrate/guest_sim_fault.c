// SPDX-License-Identifier: MIT
/* Named faults: each point counts its calls; the n-th fails. */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[GUEST_SIM_FAULT_POINTS] = {
	[GUEST_SIM_FAULT_NONE] = "none",
	[GUEST_SIM_FAULT_DESCRIBE] = "describe",
	[GUEST_SIM_FAULT_LOG_START] = "log-start",
	[GUEST_SIM_FAULT_LOG_CLEAN] = "log-clean",
	[GUEST_SIM_FAULT_LOG_STOP] = "log-stop",
	[GUEST_SIM_FAULT_THROTTLE] = "throttle",
	[GUEST_SIM_FAULT_READ] = "read",
	[GUEST_SIM_FAULT_SUSPEND] = "suspend",
	[GUEST_SIM_FAULT_LET_GO] = "let-go",
	[GUEST_SIM_FAULT_SUSPEND_TIMEOUT] = "suspend-timeout",
	[GUEST_SIM_FAULT_STATE] = "state",
	[GUEST_SIM_FAULT_RESUME] = "resume",
	[GUEST_SIM_FAULT_DESTROY] = "destroy",
	[GUEST_SIM_FAULT_PRECHECK] = "precheck",
	[GUEST_SIM_FAULT_PRECHECK_REFUSE] = "precheck-refuse",
	[GUEST_SIM_FAULT_CREATE] = "create",
	[GUEST_SIM_FAULT_MAP] = "map",
	[GUEST_SIM_FAULT_SET_TYPES] = "set-types",
	[GUEST_SIM_FAULT_DISCARD] = "discard",
	[GUEST_SIM_FAULT_SINK_STATE] = "sink-state",
	[GUEST_SIM_FAULT_FINISH] = "finish",
	[GUEST_SIM_FAULT_START] = "start",
	[GUEST_SIM_FAULT_CONNECTED] = "connected",
	[GUEST_SIM_FAULT_SINK_DESTROY] = "sink-destroy",
};

const char *guest_sim_fault_name(enum guest_sim_fault_point p)
{
	return (unsigned)p < GUEST_SIM_FAULT_POINTS ? names[p] : "unknown";
}

int guest_sim_fault_parse(const char *text, struct guest_sim_fault *f, struct pgr_error *err)
{
	size_t length = strcspn(text, ":");
	unsigned long nth = 1;
	char *end;

	if (text[length] == ':') {
		const char *number = text + length + 1;

		nth = strtoul(number, &end, 10);
		if (number[0] < '0' || number[0] > '9' || *end || !nth || nth > 1ul << 31)
			return pgr_fail(
				err, -EINVAL,
				"fault '%s': '%s' is no number of a call, write NAME:N with N from 1",
				text, number);
	}
	for (unsigned p = GUEST_SIM_FAULT_NONE + 1; p < GUEST_SIM_FAULT_POINTS; p++)
		if (strlen(names[p]) == length && !memcmp(names[p], text, length)) {
			*f = (struct guest_sim_fault){.point = p, .nth = (unsigned)nth};
			return 0;
		}
	return pgr_fail(err, -EINVAL,
			"fault '%s': no fault has this name, see names[] in guest_sim_fault.c",
			text);
}

int sim_faults_init(struct sim_faults *f, const struct guest_sim_fault *faults, unsigned nr,
		    struct pgr_error *err)
{
	if (nr > SIM_FAULTS_MAX)
		return pgr_fail(err, -EINVAL, "%u faults for one object, at most %u are possible",
				nr, SIM_FAULTS_MAX);
	for (unsigned i = 0; i < nr; i++) {
		if ((unsigned)faults[i].point >= GUEST_SIM_FAULT_POINTS || faults[i].code > 0)
			return pgr_fail(err, -EINVAL, "fault %u: point %u or code %d out of range",
					i, (unsigned)faults[i].point, faults[i].code);
		f->fault[i] = faults[i];
	}
	f->nr = nr;
	return 0;
}

static int default_code(enum guest_sim_fault_point p)
{
	switch (p) {
	case GUEST_SIM_FAULT_CREATE:
	case GUEST_SIM_FAULT_MAP:
		return -ENOMEM;
	case GUEST_SIM_FAULT_SUSPEND_TIMEOUT:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

int sim_fault_code(struct sim_faults *f, enum guest_sim_fault_point p)
{
	unsigned call = atomic_fetch_add(&f->calls[p], 1) + 1;

	for (unsigned i = 0; i < f->nr; i++) {
		unsigned nth = f->fault[i].nth ? f->fault[i].nth : 1;

		if (f->fault[i].point == p && nth == call)
			return f->fault[i].code ? f->fault[i].code : default_code(p);
	}
	return 0;
}

int sim_fault(struct sim_faults *f, enum guest_sim_fault_point p, struct pgr_error *err)
{
	int rc = sim_fault_code(f, p);

	return rc ? pgr_fail_errno(err, rc, "guest_sim: the fault '%s' that was asked for",
				   names[p])
		  : 0;
}

// SPDX-License-Identifier: MIT
#include "tools/blk/confine.h"

#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xen/xen.h>

#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>

#include "storage/offload.h"

#define OPEN_FILES_MAX 128

static int set_capabilities(uint32_t low)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{.effective = low, .permitted = low}};

	return syscall(SYS_capset, &head, data) ? -errno : 0;
}

int confine_user(uid_t uid, struct pgr_error *err)
{
	const struct rlimit files = {OPEN_FILES_MAX, OPEN_FILES_MAX}, none = {0, 0};
	int ret = 0;

	if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_CORE, &none) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) ||
	    setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		ret = -errno;
	if (!ret)
		ret = set_capabilities(1u << CAP_DAC_OVERRIDE);
	if (!ret && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		ret = -errno;
	return ret ? pgr_fail_errno(err, ret, "cannot give up root's rights") : 0;
}

static int drop_all(void *ctx)
{
	(void)ctx;
	return set_capabilities(0);
}

/*
 * Everything that is in none of the lists fails: no file is opened, no program started, no socket made, no memory made executable.
 *
 * What a relay may do: read(), write(), waiting, and what memory, time and the end of a process take. No sendto() and no sendmsg(): to a TCP socket whose connection is
 * over they would make another one, to anybody (MSG_FASTOPEN).
 */
static const uint16_t few_calls[] = {
	SYS_read,	 SYS_write,	SYS_close,	     SYS_epoll_wait,
	SYS_epoll_pwait, SYS_epoll_ctl, SYS_timerfd_settime, SYS_poll,
	SYS_ppoll,	 SYS_munmap,	SYS_mremap,	     SYS_madvise,
	SYS_brk,	 SYS_futex,	SYS_clock_gettime,   SYS_getpid,
	SYS_gettid,	 SYS_tgkill,	SYS_rt_sigreturn,    SYS_rt_sigprocmask,
	SYS_sched_yield, SYS_getrandom, SYS_restart_syscall, SYS_exit,
	SYS_exit_group,
};
#define NR_FEW_CALLS (sizeof(few_calls) / sizeof(few_calls[0]))

/* Beside these, what serving a disk takes. */
static const uint16_t more_calls[] = {
	SYS_readv,	  SYS_writev,	    SYS_pread64,	 SYS_pwrite64, SYS_preadv,
	SYS_pwritev,	  SYS_preadv2,	    SYS_pwritev2,	 SYS_io_setup, SYS_io_submit,
	SYS_io_getevents, SYS_io_destroy,   SYS_io_pgetevents,	 SYS_fsync,    SYS_fdatasync,
	SYS_fallocate,	  SYS_ftruncate,    SYS_lseek,		 SYS_fstat,    SYS_fcntl,
	SYS_eventfd2,	  SYS_shutdown,	    SYS_recvfrom,	 SYS_recvmsg,  SYS_clock_nanosleep,
	SYS_nanosleep,	  SYS_rt_sigaction, SYS_set_robust_list, SYS_rseq,     SYS_newfstatat,
	SYS_statx,
};
#define NR_MORE_CALLS (sizeof(more_calls) / sizeof(more_calls[0]))

/* The second argument of ioctl(), of which the kernel takes 32 bits. */
static const uint32_t controls[] = {
	IOCTL_GNTDEV_MAP_GRANT_REF,
	IOCTL_GNTDEV_UNMAP_GRANT_REF,
	IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, /* of libxengnttab, to unmap */
	IOCTL_GNTDEV_GRANT_COPY,
	IOCTL_EVTCHN_BIND_INTERDOMAIN, /* with the guest: the descriptor is restricted to it */
	IOCTL_EVTCHN_UNBIND,
	IOCTL_EVTCHN_NOTIFY,
	BLKDISCARD,
	BLKGETSIZE64,
	BLKSSZGET,
};
#define NR_CONTROLS (sizeof(controls) / sizeof(controls[0]))

static struct sock_filter load(uint32_t offset)
{
	return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset);
}

/* A program that goes on behind it where the loaded number is none of these, and else allows the call. */
static unsigned short allow(struct sock_filter *code, uint32_t number)
{
	code[0] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
	code[1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return 2;
}

static unsigned short allow_calls(struct sock_filter *code, const uint16_t *calls, unsigned nr)
{
	unsigned short n = 0;

	for (unsigned i = 0; i < nr; i++)
		n += allow(code + n, calls[i]);
	return n;
}

/* Sending, with flags in that argument, but not so that a TCP socket whose connection is over makes another one, to anybody. */
static unsigned short allow_sending(struct sock_filter *code, uint32_t number, uint32_t flags)
{
	code[0] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 4);
	code[1] = load(flags);
	code[2] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MSG_FASTOPEN, 0, 1);
	code[3] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	code[4] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return 5;
}

static unsigned short filter_controls(struct sock_filter *code)
{
	unsigned short n = 0;

	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0,
						 2 * NR_CONTROLS + 2);
	code[n++] = load(offsetof(struct seccomp_data, args[1]));
	for (unsigned i = 0; i < NR_CONTROLS; i++)
		n += allow(code + n, controls[i]);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	return n;
}

/* Of a disk's process, or of a relay. */
static int filter_calls(bool disk)
{
	/* Where the protection of a mapping is among the arguments: it is the third of both calls. */
	const uint32_t protection = offsetof(struct seccomp_data, args[2]);
	struct sock_filter code[2 * (NR_FEW_CALLS + NR_MORE_CALLS + NR_CONTROLS) + 30];
	struct sock_fprog program = {.filter = code};
	unsigned short n = 0;

	code[n++] = load(offsetof(struct seccomp_data, arch));
	code[n++] =
		(struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[n++] = load(offsetof(struct seccomp_data, nr));
	n += allow_calls(code + n, few_calls, NR_FEW_CALLS);
	if (disk) {
		n += allow_calls(code + n, more_calls, NR_MORE_CALLS);
		n += allow_sending(code + n, SYS_sendto, offsetof(struct seccomp_data, args[3]));
		n += allow_sending(code + n, SYS_sendmsg, offsetof(struct seccomp_data, args[2]));
		n += filter_controls(code + n);
	}
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 2, 0);
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	code[n++] = load(protection);
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	program.len = n;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program)
		       ? -errno
		       : 0;
}

int confine_calls(struct loop *l, struct pgr_error *err)
{
	/* The helper thread, which may exist already and is made here if not: afterwards none can be. */
	int ret = offload(l, drop_all, NULL);

	if (!ret)
		ret = set_capabilities(0);
	if (!ret)
		ret = filter_calls(true);
	return ret ? pgr_fail_errno(err, ret, "cannot confine the disk's process") : 0;
}

int confine_relay(struct pgr_error *err)
{
	int ret = set_capabilities(0);

	if (!ret)
		ret = filter_calls(false);
	return ret ? pgr_fail_errno(err, ret, "cannot confine the relay's process") : 0;
}

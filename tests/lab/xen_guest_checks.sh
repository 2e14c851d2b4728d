#!/bin/bash
# SPDX-License-Identifier: MIT
#
# xen_guest_checks.sh [CYCLES [GROUPS]] - runs inside a lab host as root: real guests through migrate/guest_xen, by xen_scratch
# beside this script. One line a check; exit 0 when all pass. tests/lab/xen_guest starts it.

set -uo pipefail
cycles=${1:-10}
here=$(cd "$(dirname "$0")" && pwd)
scratch=$here/xen_scratch
images=/var/lib/pagurus/guests
file=/root/guest.scratch
logs=/var/log/xen/console
# A busy host is slow; nothing here waits longer than for this, and nothing is judged by time.
patience=600
# As in the guests' own configurations: their watchdogs must not take a busy host for a defect.
patient='tsc=nowatchdog watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120'
failed=0
passed=0

pass()
{
	echo "PASS $1"
	passed=$((passed + 1))
}

fail()
{
	echo "FAIL $1: $2"
	failed=$((failed + 1))
}

# check NAME COMMAND...
check()
{
	local name=$1 said

	shift
	if said=$("$@" 2>&1); then
		pass "$name"
	else
		fail "$name" "$(tail -n 3 <<<"$said" | tr '\n' ' ')"
	fi
}

say()
{
	echo "$*"
	return 1
}

# until_true WHAT COMMAND...
until_true()
{
	local what=$1 end=$((SECONDS + patience))

	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || say "not within $patience s: $what" || return 1
		sleep 2 # each look costs the host more than it costs the guest to get on
	done
}

domains()
{
	xl list | awk 'NR > 2 { print $1 }' | sort | tr '\n' ' '
}

free_memory()
{
	xl info | awk '/^free_memory/ { print $3 }'
}

memory_is()
{
	[ "$(free_memory)" = "$1" ]
}

remove_all()
{
	local id

	for id in $(xl list | awk 'NR > 2 { print $2 }'); do
		xl destroy "$id" 2>/dev/null
	done
	until_true "the memory of removed guests" memory_is "$empty"
}

lines_of()
{
	wc -l <"$logs/guest-$1.log" 2>/dev/null || echo 0
}

# After line $2 of the guest's log: a verifier that passed and a ticker that ticks.
goes_on_after()
{
	tail -n "+$(($2 + 1))" "$logs/guest-$1.log" >/tmp/new.log || return 1
	grep -q 'VERIFIER ok.*errors=0' /tmp/new.log && grep -q 'TICKER now_ms' /tmp/new.log
}

no_complaints()
{
	! grep -E 'VERIFIER (FAIL|failed|bad)|errors=[1-9]|WARNING|BUG:|Oops|Call Trace|soft lockup|detected.*stall|Bad page|KILLED signal' \
		"$logs/guest-$1.log"
}

goes_on()
{
	local from

	from=$(lines_of "$1")
	until_true "guest $1 goes on" goes_on_after "$1" "$from" && no_complaints "$1"
}

# boot NAME [OPTION...]: a tiny guest that ticks and verifies
boot()
{
	local name=$1

	shift
	rm -f "$logs"/guest-"$name"*.log
	(cd "$images" && xl create -q tiny.cfg "name=\"$name\"" \
		"extra='console=hvc0 mitigations=off $patient pagurus.run=\"ticker; verifier 16M\"'" "$@" \
		</dev/null >/tmp/create.log 2>&1) || say "xl create: $(cat /tmp/create.log)" || return 1
	until_true "guest $name boots" goes_on_after "$name" 0
}

save()
{
	"$scratch" save "$1" "$file"
}

restore()
{
	"$scratch" restore "$file" "$@"
}

gone()
{
	! xl domid "$1" >/dev/null 2>&1
}

there()
{
	xl domid "$1" >/dev/null
}

no_provisional_logs()
{
	! compgen -G "$logs/*--incoming.log"
}

# ---- checks ----

moves()
{
	local name=$1 vcpus=$2 uuid

	uuid=$(xl list -v "$name" | awk 'NR == 2 { print $7 }')
	save "$name" && gone "$name" || say "not saved" || return 1
	restore && there "$name" || say "not restored" || return 1
	goes_on "$name" || return 1
	[ "$(xl list -v "$name" | awk 'NR == 2 { print $7 }')" = "$uuid" ] || say "another uuid" || return 1
	[ "$(xl list "$name" | awk 'NR == 2 { print $4 }')" = "$vcpus" ] || say "not $vcpus vCPUs" || return 1
	# Xen's own tools must find nothing strange about it: its console, its suspend, its end.
	[ -n "$(xenstore-read "/local/domain/$(xl domid "$name")/console/tty")" ] || say "no console" || return 1
}

stock_tools()
{
	local name=$1

	timeout "$patience" xl save "$name" /root/stock.save </dev/null >/dev/null 2>&1 || say "xl save" || return 1
	timeout "$patience" xl restore /root/stock.save </dev/null >/dev/null 2>&1 || say "xl restore" || return 1
	rm -f /root/stock.save
	goes_on "$name"
}

kernel_moves()
{
	local kernel=$1 vcpus=$2

	boot tiny "kernel=\"$images/vmlinux-$kernel\"" "vcpus=$vcpus" && moves tiny "$vcpus"
}

asked=0

# Not the echo of the question, which has no number at its end. xenconsoled puts times before lines.
shell_did()
{
	grep -q "DID-$2-0" "$logs/guest-$1.log"
}

# shell_does GUEST COMMAND: the shell on the guest's console does it and it succeeds. (ssh takes minutes where
# the processor is emulated.)
shell_does()
{
	local tty

	asked=$((asked + 1))
	tty=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty") || say "no console" || return 1
	printf '\n%s; echo DID-%s-$?\n' "$2" "$asked" >"$tty"
	until_true "the guest's shell does: $2" shell_did "$1" "$asked"
}

online_in_guest()
{
	[ "$(xl vcpu-list tiny | awk 'NR > 1 && $5 != "--p"' | wc -l)" = "$1" ]
}

# A vCPU that is off while the guest moves can be switched on afterwards.
switched_off_vcpus_move()
{
	xl vcpu-set tiny 1
	until_true "one vCPU is off" online_in_guest 1 || return 1
	moves tiny 1 || return 1
	online_in_guest 1 || say "the vCPU came back by itself" || return 1
	xl vcpu-set --ignore-host tiny 2
	# Linux leaves it to user space to use a CPU that is there.
	shell_does tiny 'until echo 1 >/sys/devices/system/cpu/cpu1/online; do sleep 1; done' || return 1
	until_true "the vCPU is on again" online_in_guest 2 && goes_on tiny
}

balloons()
{
	local before

	xl mem-set tiny 100
	until_true "the balloon" ballooned_to tiny 102400 || return 1
	before=$(free_memory)
	"$scratch" describe tiny
	save tiny && restore && goes_on tiny || return 1
	memory_is "$before" || say "free memory was $before MiB, is $(free_memory)" || return 1
	xl mem-set tiny 128
	until_true "the balloon's way back" ballooned_to tiny 131072 && goes_on tiny
}

ballooned_to()
{
	local kib

	# Within a MiB: pages shared with the host count.
	kib=$(xl list "$1" | awk 'NR == 2 { print $3 * 1024 }')
	[ "$kib" -le $(($2 + 1024)) ] && [ "$kib" -ge $(($2 - 1024)) ]
}

keeps_running()
{
	"$scratch" save tiny "$file" keep && goes_on tiny
}

times_out()
{
	local said status=0

	xl pause tiny
	said=$("$scratch" suspend-timeout tiny 1500) || status=$?
	xl unpause tiny
	[ $status = 0 ] || say "status $status: $said" || return 1
	grep -q 'runs on' <<<"$said" || say "it said: $said" || return 1
	goes_on tiny
}

# A guest that stops when its time is over: it is resumed, not forgotten. It is paused meanwhile; one that was quicker is asked again.
stops_late()
{
	local said status try

	for try in $(seq 20); do
		status=0
		said=$("$scratch" suspend-late tiny "$(xl domid tiny)" 3000) || status=$?
		[ $status != 1 ] || say "try $try: $said" || return 1
		goes_on tiny || say "try $try: $said" || return 1
		[ $status != 0 ] || { echo "try $try: $said"; return 0; }
	done
	say "it was never paused in time: $said"
}

refuses()
{
	local wanted=$1 said status=0

	said=$("$scratch" precheck "$file" 2>&1) || status=$?
	if [ $status != 3 ] || ! grep -q "$wanted" <<<"$said"; then
		say "status $status: $said"
	fi
}

without_bridge()
{
	local status

	ip link set xenbr0 down
	ip link set xenbr0 name elsewhere
	refuses "bridge xenbr0"
	status=$?
	ip link set elsewhere name xenbr0
	ip link set xenbr0 up
	return $status
}

# A step that ends early, or a lie: refused, in words, and nothing is left.
leaves_nothing()
{
	local said status=0

	said=$(restore "$1" 2>&1) || status=$?
	[ $status = 1 ] || say "status $status: $said" || return 1
	# A sentence, not a number.
	[ ${#said} -gt 20 ] || say "it said: $said" || return 1
	[ -z "$(domains)" ] || say "left: $(domains); it said: $said" || return 1
	until_true "its memory" memory_is "$empty" || say "it said: $said"
}

many()
{
	local before

	before=$(free_memory)
	"$scratch" cycle tiny "$file" "$cycles" >/tmp/cycle.log 2>&1 || say "$(tail -n 2 /tmp/cycle.log)" || return 1
	goes_on tiny || return 1
	memory_is "$before" || say "free memory was $before MiB, is $(free_memory)" || return 1
	[ "$(domains)" = "tiny " ] || say "domains: $(domains)"
}

answers()
{
	ping -c 1 -W 5 "$1"
}

network_moves()
{
	(cd "$images" && xl create -q tiny-net.cfg </dev/null >/dev/null 2>&1) || say "xl create" || return 1
	until_true "ping before" answers 10.99.0.110 && goes_on tiny-net || return 1
	moves tiny-net 1 && until_true "ping after" answers 10.99.0.110
}

full_moves()
{
	rm -f "$logs"/guest-full*.log
	(cd "$images" && xl create -q full.cfg \
		"extra='console=hvc0 mitigations=off $patient root=/dev/xvda rw systemd.show_status=false net.ifnames=0 ip=10.99.0.111/24 hostname=full pagurus.run=\"ticker; verifier 32M\"'" \
		</dev/null >/tmp/create.log 2>&1) || say "xl create: $(cat /tmp/create.log)" || return 1
	until_true "ping before" answers 10.99.0.111 && goes_on full || return 1
	shell_does full 'head -c 2000000 /dev/urandom >/root/blob; sha256sum </root/blob >/root/sum; sync' || return 1
	moves full 1 && until_true "ping after" answers 10.99.0.111 || return 1
	shell_does full 'echo 3 >/proc/sys/vm/drop_caches; sha256sum </root/blob | cmp - /root/sum' || return 1
	shell_does full 'cp /root/blob /root/blob2; sync; rm /root/blob /root/blob2 /root/sum; sync'
}

# ---- the run: groups that do not depend on each other ----

group_tiny()
{
	check "a guest with Linux 6.1 and 1 vCPU moves" kernel_moves 6.1 1
	check "xl save and restore take what was restored" stock_tools tiny
	check "a guest is copied and runs on" keeps_running
	check "a paused guest: the suspend times out and nothing happened" times_out
	check "a guest that stops too late is resumed" stops_late
	check "precheck: its name is taken" refuses "is here already"
	check "a balloon that is down moves and comes up again" balloons
	check "$cycles moves leave nothing" many
}

# What goes wrong half-way, and what a hostile peer may send.
group_failures()
{
	local step lie

	check "a guest is saved, to be restored with failures" failures_prepare
	for step in create map types state finish; do
		check "ended early ($step): nothing is left" leaves_nothing "fail=$step"
	done
	for lie in table-beyond table-writable store-is-console store-beyond start-info-table \
		start-info-beyond p2m-beyond p2m-short cr3-beyond cr3-ordinary gdt-many gdt-beyond rdx \
		vcpu-many xsave-size xsave-features no-shared-info shared-info-cr3 callback; do
		check "lie ($lie): refused, nothing is left" leaves_nothing "lie=$lie"
	done
	check "the same file without lies" restore
}

failures_prepare()
{
	boot tiny && save tiny && until_true "its memory" memory_is "$empty"
}

group_kernels()
{
	check "a guest with Linux 6.1-cloud and 2 vCPUs moves" kernel_moves 6.1-cloud 2
	check "a vCPU that is off moves and comes on" switched_off_vcpus_move
	remove_all
	check "a guest with Linux 6.12 and 4 vCPUs moves" kernel_moves 6.12 4
}

group_devices()
{
	check "a guest with a network card moves" network_moves
	check "saved with its card" save tiny-net
	check "precheck: its bridge is missing" without_bridge
	remove_all
	check "a guest with systemd, disk and network moves" full_moves
}

for id in $(xl list | awk 'NR > 2 { print $2 }'); do
	xl destroy "$id"
done
sleep 1
# Guests that never stop computing must not keep the control domain from its work.
xl sched-credit2 -d Domain-0 -w 512 >/dev/null 2>&1
empty=$(free_memory)
xl dmesg -c >/dev/null
rm -f "$logs"/*--incoming.log

for group in ${2:-tiny failures kernels devices}; do
	"group_$group"
	remove_all
done
check "all memory is back" memory_is "$empty"
check "no log of a provisional name is left" no_provisional_logs
xl dmesg >/tmp/xen.log
# The lies make the hypervisor complain about page tables: it says so at most here. It also says when it read its clock late.
check "the hypervisor has nothing else to say" \
	sh -c "! grep -E '\(XEN\)' /tmp/xen.log | grep -vE 'mm\.c|domain_build|Bad|Failure|Platform timer' | grep ."
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

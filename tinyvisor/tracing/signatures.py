"""What the arguments of each system call are. Data only; `tinyvisor.tracing.decode` has the kinds.

A kind that begins with ``>`` is filled in by the kernel and read when the call has returned. Source: the kernel's
include/linux/syscalls.h and the man pages of section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

_TEXT = """
read: fd >data size
write: fd data size
open: path open mode
close: fd
stat: path >stat
fstat: fd >stat
lstat: path >stat
poll: pollfds uint int
lseek: fd long whence
mmap: addr size prot mmap fd offset
mprotect: addr size prot
munmap: addr size
brk: addr
rt_sigaction: signal sigaction >sigaction size
rt_sigprocmask: sigmask sigset >sigset size
rt_sigreturn:
ioctl: fd ioctl hex
pread64: fd >data size offset
pwrite64: fd data size offset
readv: fd >iovec int
writev: fd iovec int
access: path access
pipe: >fds
select: int hex hex hex timeval
sched_yield:
mremap: addr size size hex addr
msync: addr size hex
mincore: addr size addr
madvise: addr size madvise
shmget: hex size octal
shmat: int addr hex
shmctl: int int addr
dup: fd
dup2: fd fd
pause:
nanosleep: timespec >timespec
getitimer: int addr
alarm: uint
setitimer: int addr addr
getpid:
sendfile: fd fd addr size
socket: family sock_type int
connect: fd sockaddr int
accept: fd >sockaddr >int*
sendto: fd data size msg sockaddr int
recvfrom: fd >data size msg >sockaddr >int*
sendmsg: fd msghdr msg
recvmsg: fd >msghdr msg
shutdown: fd shutdown
bind: fd sockaddr int
listen: fd int
getsockname: fd >sockaddr >int*
getpeername: fd >sockaddr >int*
socketpair: family sock_type int >fds
setsockopt: fd sock_level sock_option option int
getsockopt: fd sock_level sock_option >option >int*
clone: clone addr addr addr hex
fork:
vfork:
execve: path argv envp
exit: int
wait4: int >status wait >rusage
kill: int signal
uname: >utsname
semget: hex int octal
semop: int addr size
semctl: int int int hex
shmdt: addr
msgget: hex octal
msgsnd: int addr size hex
msgrcv: int addr size long hex
msgctl: int int addr
fcntl: fd fcntl fcntl_argument
flock: fd flock
fsync: fd
fdatasync: fd
truncate: path long
ftruncate: fd long
getdents: fd addr uint
getcwd: >path size
chdir: path
fchdir: fd
rename: path path
mkdir: path octal
rmdir: path
creat: path octal
link: path path
unlink: path
symlink: text path
readlink: path >data size
chmod: path octal
fchmod: fd octal
chown: path int int
fchown: fd int int
lchown: path int int
umask: octal
gettimeofday: >timeval addr
getrlimit: resource >rlimit
getrusage: rusage >rusage
sysinfo: addr
times: addr
ptrace: long int addr addr
getuid:
syslog: int addr int
getgid:
setuid: int
setgid: int
geteuid:
getegid:
setpgid: int int
getppid:
getpgrp:
setsid:
setreuid: int int
setregid: int int
getgroups: int addr
setgroups: size addr
setresuid: int int int
getresuid: >int* >int* >int*
setresgid: int int int
getresgid: >int* >int* >int*
getpgid: int
setfsuid: int
setfsgid: int
getsid: int
capget: addr addr
capset: addr addr
rt_sigpending: >sigset size
rt_sigtimedwait: sigset addr timespec size
rt_sigqueueinfo: int signal addr
rt_sigsuspend: sigset size
sigaltstack: addr addr
utime: path addr
mknod: path octal hex
personality: hex
ustat: hex addr
statfs: path addr
fstatfs: fd addr
getpriority: int int
setpriority: int int int
sched_setparam: int addr
sched_getparam: int addr
sched_setscheduler: int int addr
sched_getscheduler: int
sched_get_priority_max: int
sched_get_priority_min: int
sched_rr_get_interval: int >timespec
mlock: addr size
munlock: addr size
mlockall: hex
munlockall:
vhangup:
pivot_root: path path
prctl: prctl prctl_argument hex hex hex
arch_prctl: arch_prctl hex
adjtimex: addr
setrlimit: resource rlimit
chroot: path
sync:
acct: path
settimeofday: timeval addr
mount: path path text mount option_text
umount2: path umount
swapon: path hex
swapoff: path
reboot: hex hex hex addr
sethostname: data_of_size size
setdomainname: data_of_size size
iopl: int
ioperm: hex hex int
init_module: addr size text
delete_module: text hex
quotactl: hex path int addr
gettid:
readahead: fd offset size
setxattr: path text data size hex
lsetxattr: path text data size hex
fsetxattr: fd text data size hex
getxattr: path text >data size
lgetxattr: path text >data size
fgetxattr: fd text >data size
listxattr: path >data size
llistxattr: path >data size
flistxattr: fd >data size
removexattr: path text
lremovexattr: path text
fremovexattr: fd text
tkill: int signal
time: addr
futex: addr futex uint hex addr hex
sched_setaffinity: int size >cpuset
sched_getaffinity: int size >cpuset
io_setup: uint addr
io_destroy: hex
io_getevents: hex long long addr timespec
io_submit: hex long addr
io_cancel: hex addr addr
epoll_create: int
getdents64: fd addr uint
set_tid_address: addr
restart_syscall:
semtimedop: int addr uint timespec
fadvise64: fd offset size int
timer_create: clock addr >int*
timer_settime: int hex addr addr
timer_gettime: int addr
timer_getoverrun: int
timer_delete: int
clock_settime: clock timespec
clock_gettime: clock >timespec
clock_getres: clock >timespec
clock_nanosleep: clock int timespec >timespec
exit_group: int
epoll_wait: fd >epoll_events int int
epoll_ctl: fd epoll_op fd epoll_event
tgkill: int int signal
utimes: path addr
mbind: addr size int addr size hex
set_mempolicy: int addr size
get_mempolicy: addr addr size addr hex
mq_open: text open octal addr
mq_unlink: text
mq_timedsend: fd data size uint timespec
mq_timedreceive: fd >data size addr timespec
mq_notify: fd addr
mq_getsetattr: fd addr addr
waitid: idtype int addr wait >rusage
add_key: text text addr size int
request_key: text text text int
keyctl: int hex hex hex hex
ioprio_set: int int int
ioprio_get: int int
inotify_init:
inotify_add_watch: fd path hex
inotify_rm_watch: fd int
openat: dir path open mode
mkdirat: dir path octal
mknodat: dir path octal hex
fchownat: dir path int int at
futimesat: dir path addr
newfstatat: dir path >stat at
unlinkat: dir path at
renameat: dir path dir path
linkat: dir path dir path at
symlinkat: text dir path
readlinkat: dir path >data size
fchmodat: dir path octal
faccessat: dir path access
pselect6: int hex hex hex timespec addr
ppoll: pollfds uint timespec sigset size
unshare: clone
set_robust_list: addr size
get_robust_list: int addr addr
splice: fd addr fd addr size hex
tee: fd fd size hex
sync_file_range: fd offset size hex
vmsplice: fd iovec size hex
move_pages: int size addr addr addr hex
utimensat: dir path addr at
epoll_pwait: fd >epoll_events int int sigset size
signalfd: fd sigset size
timerfd_create: clock cloexec
eventfd: uint
fallocate: fd hex offset size
timerfd_settime: fd hex addr addr
timerfd_gettime: fd addr
accept4: fd >sockaddr >int* sock_flags
signalfd4: fd sigset size cloexec
eventfd2: uint eventfd
epoll_create1: cloexec
dup3: fd fd cloexec
pipe2: >fds pipe
inotify_init1: cloexec
preadv: fd >iovec int offset hex
pwritev: fd iovec int offset hex
rt_tgsigqueueinfo: int int signal addr
perf_event_open: addr int int fd hex
recvmmsg: fd addr uint msg timespec
fanotify_init: hex hex
fanotify_mark: fd hex hex dir path
prlimit64: int resource rlimit >rlimit
name_to_handle_at: dir path addr addr at
open_by_handle_at: fd addr open
clock_adjtime: clock addr
syncfs: fd
sendmmsg: fd addr uint msg
setns: fd clone
getcpu: >int* >int* addr
process_vm_readv: int addr size addr size hex
process_vm_writev: int addr size addr size hex
kcmp: int int int hex hex
finit_module: fd text hex
sched_setattr: int addr hex
sched_getattr: int addr uint hex
renameat2: dir path dir path rename
seccomp: seccomp_op seccomp addr
getrandom: >data size getrandom
memfd_create: text memfd
kexec_file_load: fd fd size text hex
bpf: bpf addr uint
execveat: dir path argv envp at
userfaultfd: cloexec
membarrier: hex hex int
mlock2: addr size hex
copy_file_range: fd addr fd addr size hex
preadv2: fd >iovec int offset hex hex
pwritev2: fd iovec int offset hex hex
pkey_mprotect: addr size prot int
pkey_alloc: hex hex
pkey_free: int
statx: dir path at hex >statx
io_pgetevents: hex long long addr timespec addr
rseq: addr uint hex hex
pidfd_send_signal: fd signal addr hex
io_uring_setup: uint addr
io_uring_enter: fd uint uint hex addr size
io_uring_register: fd uint addr uint
open_tree: dir path open_tree
move_mount: dir path dir path hex
fsopen: text hex
fsconfig: fd uint text option_text int
fsmount: fd hex mount_attr
fspick: dir path hex
pidfd_open: int cloexec
clone3: clone_args size
close_range: uint uint close_range
openat2: dir path open_how size
pidfd_getfd: fd fd hex
faccessat2: dir path access access_at
process_madvise: fd iovec size madvise hex
epoll_pwait2: fd >epoll_events int timespec sigset size
mount_setattr: dir path at addr size
quotactl_fd: fd hex int addr
landlock_create_ruleset: addr size hex
landlock_add_rule: fd landlock_rule addr hex
landlock_restrict_self: fd hex
memfd_secret: cloexec
process_mrelease: fd hex
futex_waitv: addr uint hex timespec clock
set_mempolicy_home_node: addr size size hex
cachestat: fd addr addr hex
fchmodat2: dir path octal at
map_shadow_stack: addr size hex
futex_wake: addr hex int hex
futex_wait: addr hex hex hex timespec clock
futex_requeue: addr hex int int
statmount: addr addr size hex
listmount: addr addr size hex
lsm_get_self_attr: uint addr addr hex
lsm_set_self_attr: uint addr uint hex
lsm_list_modules: addr addr hex
mseal: addr size hex
setxattrat: dir path at text addr size
getxattrat: dir path at text addr size
listxattrat: dir path at >data size
removexattrat: dir path at text
open_tree_attr: dir path open_tree addr size
file_getattr: dir path addr size at
file_setattr: dir path addr size at
listns: addr addr size hex
rseq_slice_yield:
uselib: path
sysfs: int addr addr
remap_file_pages: addr size hex size hex
migrate_pages: int size addr addr
kexec_load: hex size addr hex
modify_ldt: int addr size
"""

SIGNATURES: Mapping[str, tuple[str, ...]] = {
    name: tuple(kinds.split()) for name, _, kinds in (line.partition(":") for line in _TEXT.strip().splitlines())
}
"""Name of a call → the kinds of its arguments. A call that is not here shows six numbers."""

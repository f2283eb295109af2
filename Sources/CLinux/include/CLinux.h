// What Glibc's module lacks, for Swift: control messages, epoll, eventfd, memfd, and a copy that
// survives the truncation of the file it copies from.
#ifndef CLINUX_H
#define CLINUX_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

// Some of these are hidden without _GNU_SOURCE, which a public header must not define.
#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
#define CLINUX_SCM_CREDENTIALS 2
#define CLINUX_SCM_PIDFD 4     /* and this option: Linux 6.5 */
#define CLINUX_SO_PASSPIDFD 76
#define CLINUX_DONTWAIT 0x40 /* MSG_DONTWAIT, an enumerator elsewhere */
#define CLINUX_MAX_DESCRIPTORS 253 /* SCM_MAX_FD: more cannot come in one message */

struct clinux_credentials { int32_t pid; uint32_t uid, gid; };

// What one recvmsg brought besides bytes.
struct clinux_received {
  int count;                 /* descriptors in the caller's array */
  bool truncated;            /* MSG_CTRUNC: the kernel dropped descriptors */
  struct clinux_credentials sender; /* pid 0 unless the socket has SO_PASSCRED */
  int identity;              /* the sender's pidfd; -1 unless the socket has SO_PASSPIDFD */
};

// recvmsg with MSG_CMSG_CLOEXEC; `descriptors` has room for CLINUX_MAX_DESCRIPTORS.
static inline ssize_t clinux_receive(
    int socket, void *bytes, size_t size, int flags, int *descriptors,
    struct clinux_received *received) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(CLINUX_MAX_DESCRIPTORS * sizeof(int)) +
               CMSG_SPACE(sizeof(struct clinux_credentials)) + CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec vector = {bytes, size};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1,
      .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  received->count = 0;
  received->truncated = false;
  received->sender.pid = 0;
  received->identity = -1;
  ssize_t n = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (n < 0) return n;
  // Also where no control message came: the kernel may have dropped every descriptor.
  received->truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET) continue;
    size_t size = c->cmsg_len - CMSG_LEN(0);
    if (c->cmsg_type == SCM_RIGHTS) {
      // There is one such block at most, so the array cannot overflow.
      memcpy(descriptors, CMSG_DATA(c), size);
      received->count = (int)(size / sizeof(int));
    } else if (c->cmsg_type == CLINUX_SCM_CREDENTIALS && size >= sizeof received->sender) {
      memcpy(&received->sender, CMSG_DATA(c), sizeof received->sender);
    } else if (c->cmsg_type == CLINUX_SCM_PIDFD && size >= sizeof(int)) {
      memcpy(&received->identity, CMSG_DATA(c), sizeof(int));
    }
  }
  return n;
}

// sendmsg with MSG_NOSIGNAL and at most CLINUX_MAX_DESCRIPTORS descriptors.
static inline ssize_t clinux_send(
    int socket, const void *bytes, size_t size, int flags, const int *descriptors, int count) {
  if (count == 0) return send(socket, bytes, size, flags | MSG_NOSIGNAL);
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(CLINUX_MAX_DESCRIPTORS * sizeof(int))];
  } control;
  struct iovec vector = {(void *)bytes, size};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1,
      .msg_control = control.bytes, .msg_controllen = CMSG_SPACE((size_t)count * sizeof(int))};
  memset(control.bytes, 0, message.msg_controllen);
  control.align.cmsg_level = SOL_SOCKET;
  control.align.cmsg_type = SCM_RIGHTS;
  control.align.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
  memcpy(CMSG_DATA(&control.align), descriptors, (size_t)count * sizeof(int));
  return sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

static inline int clinux_accept(int socket) {
  return (int)syscall(SYS_accept4, socket, NULL, NULL, SOCK_CLOEXEC);
}

static inline int clinux_memfd(const char *name) {
  return (int)syscall(SYS_memfd_create, name, 3u /* MFD_CLOEXEC | MFD_ALLOW_SEALING */);
}
// No one may change the file's size, nor these seals.
static inline int clinux_seal_size(int file) {
  return fcntl(file, 1033 /* F_ADD_SEALS */, 1 | 2 | 4 /* SEAL, SHRINK, GROW */);
}

static inline int clinux_epoll_add(int epoll, int file, uint32_t events, uint64_t number) {
  struct epoll_event event = {.events = events, .data = {.u64 = number}};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event);
}
static inline int clinux_epoll_change(int epoll, int file, uint32_t events, uint64_t number) {
  struct epoll_event event = {.events = events, .data = {.u64 = number}};
  return epoll_ctl(epoll, EPOLL_CTL_MOD, file, &event);
}

// SO_PEERCRED: who connected, or made the pair.
static inline int clinux_peer(int socket, struct clinux_credentials *peer) {
  socklen_t size = sizeof *peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, peer, &size);
}
// A number that all duplicates of a socket share and that is never used again; 0 for no socket.
static inline uint64_t clinux_cookie(int socket) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

struct clinux_file_status { uint64_t device, inode, size; bool is_regular; };

// fstat, without asking whoever serves the file's system (files.c).
int clinux_file_status(int file, struct clinux_file_status *status);

// The size of a file's pages: hugetlbfs says its own.
static inline size_t clinux_page_size(int file) {
  struct statfs info;
  if (fstatfs(file, &info) == 0 && info.f_type == 0x958458f6) return (size_t)info.f_bsize;
  return (size_t)sysconf(_SC_PAGESIZE);
}

static inline int clinux_pidfd(pid_t process) {
  return (int)syscall(SYS_pidfd_open, process, 0);
}

// Adds 1 to an eventfd and never blocks, whatever its owner does to it meanwhile (eventfd.c).
void clinux_signal(int eventfd);

// Takes an eventfd's count and never blocks, whatever its owner does to it meanwhile; 0 when there
// is none (eventfd.c).
uint64_t clinux_drain(int eventfd);

// ---- guarded copies (guard.c) --------------------------------------------------------------

// Registers a mapping so that a fault in it, because its file was truncated, neither kills the
// process nor goes unnoticed. `page` is the mapping's page size. Returns a slot, or -1 when all
// are taken.
int clinux_guard_add(void *base, size_t size, size_t page);
// Call before munmap.
void clinux_guard_remove(int slot);
// Whether a copy has met a truncated page; the mapping's content is then partly made up.
bool clinux_guard_poisoned(int slot);

// Copies of 1, 2, 4 and 8 aligned bytes are single accesses, as a device's would be.
static inline void clinux_copy(void *to, const void *from, size_t size) {
  uintptr_t both = (uintptr_t)to | (uintptr_t)from;
  switch (size) {
    case 1: *(volatile uint8_t *)to = *(const volatile uint8_t *)from; return;
    case 2: if (both & 1) break;
      *(volatile uint16_t *)to = *(const volatile uint16_t *)from; return;
    case 4: if (both & 3) break;
      *(volatile uint32_t *)to = *(const volatile uint32_t *)from; return;
    case 8: if (both & 7) break;
      *(volatile uint64_t *)to = *(const volatile uint64_t *)from; return;
  }
  memcpy(to, from, size);
}

// Atomic changes of an aligned integer in a registered mapping; they return what it was.
uint32_t clinux_add32(void *p, uint32_t v);
uint64_t clinux_add64(void *p, uint64_t v);
uint32_t clinux_swap32(void *p, uint32_t v);
uint64_t clinux_swap64(void *p, uint64_t v);
uint32_t clinux_cas32(void *p, uint32_t expected, uint32_t v);
uint64_t clinux_cas64(void *p, uint64_t expected, uint64_t v);

#endif

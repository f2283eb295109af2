// A write to a client's eventfd may block: the client can fill the counter after a poll that said
// there is room, and clear O_NONBLOCK, which belongs to the open file and so to both sides. The
// kernel's own signal never blocks. Asynchronous I/O gives it, by a request that is done at once.
#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sys/uio.h>
#include <time.h>

static aio_context_t context; // 0: refused, by a sandbox or a kernel without it
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void setup(void) {
  if (syscall(SYS_io_setup, 128, &context) != 0) context = 0;
}

void clinux_signal(int eventfd) {
  pthread_once(&once, setup);
  // An eventfd is always readable or writable, so waiting for either ends as it begins.
  struct iocb request = {
      .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)eventfd, .aio_buf = POLLIN | POLLOUT,
      .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)eventfd};
  struct iocb *requests[] = {&request};
  for (int attempt = 0; context != 0 && attempt < 100; attempt++) {
    if (syscall(SYS_io_submit, context, 1L, requests) == 1) return;
    if (errno != EAGAIN) break;
    // Completions have filled the context. Nobody wants them.
    struct io_event done[128];
    struct timespec now = {0};
    syscall(SYS_io_getevents, context, 0L, 128L, done, &now);
  }
  // The next best: blocks only if the counter is filled between these two calls.
  struct pollfd state = {.fd = eventfd, .events = POLLOUT};
  uint64_t one = 1;
  int ready;
  while ((ready = poll(&state, 1, 0)) < 0 && errno == EINTR) {}
  if (ready == 1) (void)!write(eventfd, &one, sizeof one);
}

uint64_t clinux_drain(int eventfd) {
  uint64_t count = 0;
  struct iovec place = {.iov_base = &count, .iov_len = sizeof count};
  ssize_t got;
  while ((got = preadv2(eventfd, &place, 1, -1, RWF_NOWAIT)) < 0 && errno == EINTR) {}
  if (got == sizeof count) return count;
  if (got >= 0 || errno == EAGAIN) return 0;
  // A kernel without this for eventfds: the count stays, and whoever asks was told that there is one.
  return 1;
}

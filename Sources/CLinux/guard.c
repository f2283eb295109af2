// A file that a client truncates after it was mapped turns the pages behind its new end into
// SIGBUS. The handler below finds the mapping, marks it and lays anonymous memory over the rest
// of it, so that the copy goes on harmlessly; the copy looks at the mark afterwards.
#define _GNU_SOURCE
#include "CLinux.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

// Far below vm.max_map_count (65,530), since every overlay splits a mapping in two.
enum { slots = 16384 };

static struct {
  _Atomic uintptr_t base; // 0: free
  _Atomic size_t size;
  _Atomic size_t page;
  atomic_bool poisoned;
} guard[slots];

static atomic_int used; // slots below this number may be taken
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction previous;

// The thread sanitizer does atomics itself, under a lock of its own, which a fault in one would find held.
#ifdef __clang__
#define UNSANITIZED __attribute__((disable_sanitizer_instrumentation))
#else
#define UNSANITIZED
#endif

// The system call itself: a sanitizer's mmap is not for signal handlers.
static bool overlay(uintptr_t start, size_t size) {
  int saved = errno;
  long result = syscall(SYS_mmap, start, size, (long)(PROT_READ | PROT_WRITE),
                        (long)(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE), -1L, 0L);
  errno = saved;
  return result != -1;
}

UNSANITIZED static void handle(int signal, siginfo_t *info, void *context) {
  (void)context;
  uintptr_t address = (uintptr_t)info->si_addr;
  int top = atomic_load(&used);
  for (int i = 0; i < top && info->si_code == BUS_ADRERR; i++) {
    uintptr_t base = atomic_load(&guard[i].base);
    size_t size = atomic_load(&guard[i].size);
    // Read again, since another mapping's slot may be freed and taken meanwhile, and an old base with a
    // new size could reach over this address. The mapping that faulted stays: a copy runs in it.
    if (base == 0 || atomic_load(&guard[i].base) != base) continue;
    if (address < base || address - base >= size) continue;
    size_t page = atomic_load(&guard[i].page);
    uintptr_t start = address & ~(page - 1);
    atomic_store(&guard[i].poisoned, true);
    // One page will do where the whole rest is too much for vm.overcommit_memory = 2.
    if (overlay(start, base + size - start) || overlay(start, page)) return;
    break;
  }
  // Not ours: the fault comes again under the handler that was there before, and what a process sent
  // is sent again.
  sigaction(signal, &previous, NULL);
  if (info->si_code <= 0) raise(signal);
}

static void install(void) {
  // SA_NODEFER, or a fault under the previous handler would end the process without a word.
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous);
}

int clinux_guard_add(void *base, size_t size, size_t page) {
  pthread_once(&once, install);
  int found = -1;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < slots; i++) {
    if (atomic_load(&guard[i].base) != 0) continue;
    atomic_store(&guard[i].poisoned, false);
    atomic_store(&guard[i].size, size);
    atomic_store(&guard[i].page, page);
    atomic_store(&guard[i].base, (uintptr_t)base);
    if (i >= atomic_load(&used)) atomic_store(&used, i + 1);
    found = i;
    break;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

void clinux_guard_remove(int slot) {
  pthread_mutex_lock(&lock);
  atomic_store(&guard[slot].base, 0);
  pthread_mutex_unlock(&lock);
}

bool clinux_guard_poisoned(int slot) { return atomic_load(&guard[slot].poisoned); }

UNSANITIZED uint32_t clinux_add32(void *p, uint32_t v) {
  return __atomic_fetch_add((uint32_t *)p, v, __ATOMIC_SEQ_CST);
}
UNSANITIZED uint64_t clinux_add64(void *p, uint64_t v) {
  return __atomic_fetch_add((uint64_t *)p, v, __ATOMIC_SEQ_CST);
}
UNSANITIZED uint32_t clinux_swap32(void *p, uint32_t v) {
  return __atomic_exchange_n((uint32_t *)p, v, __ATOMIC_SEQ_CST);
}
UNSANITIZED uint64_t clinux_swap64(void *p, uint64_t v) {
  return __atomic_exchange_n((uint64_t *)p, v, __ATOMIC_SEQ_CST);
}
UNSANITIZED uint32_t clinux_cas32(void *p, uint32_t expected, uint32_t v) {
  __atomic_compare_exchange_n(
      (uint32_t *)p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}
UNSANITIZED uint64_t clinux_cas64(void *p, uint64_t expected, uint64_t v) {
  __atomic_compare_exchange_n(
      (uint64_t *)p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

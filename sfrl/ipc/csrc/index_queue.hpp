// Queue of 64-bit messages between processes: many producers, one consumer, no locks.
//
// All state lives in one block of shared memory that starts as zeros, which is the empty queue:
//
//     Doorbell | Ring 0, its cells | Ring 1, its cells | ...           one ring per producer
//
// Each ring has one producer and one consumer, so a put and a get are a few loads and stores
// each: wait-free, no compare-and-swap. The consumer of all rings sleeps on one doorbell, which
// producers ring only if it sleeps. A consumer of several queues sleeps on the doorbell of one of
// them, which all of their producers ring.
//
// Killed processes. A message exists from the one store that moves `tail`, and is gone from the
// one store that moves `head`. A producer killed at any instruction therefore leaves a prefix of
// its messages. Killed between publishing and ringing, it leaves the consumer asleep beside a
// message; the consumer finds it at its next timeout, so callers bound their naps. A consumer
// killed between copying messages out and moving `head` leaves them to be read again.
//
// No Python here: csrc/stress.cpp runs this header under ThreadSanitizer.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __linux__
#include <cerrno>
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sfrl {

constexpr std::size_t kCacheLine = 64;

struct alignas(kCacheLine) Doorbell {
  std::atomic<std::uint32_t> rung;      // times rung; the futex word
  std::atomic<std::uint32_t> sleeping;  // 1 while the consumer may sleep; only it writes this
  std::uint32_t next_producer;          // of this queue, to serve first; the consumer's own
};

// Both indices count messages since the start and never wrap (2^64); the cell is index % capacity.
// They have a cache line each, so that one side's stores do not evict what the other side writes.
struct Ring {
  alignas(kCacheLine) std::atomic<std::uint64_t> tail;  // messages put; only the producer writes
  alignas(kCacheLine) std::atomic<std::uint64_t> head;  // messages got; only the consumer writes
};

// Other processes see these objects at other addresses: no locks hidden inside, no padding games.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint32_t>) == 4 && sizeof(Doorbell) == kCacheLine);
static_assert(sizeof(Ring) == 2 * kCacheLine);

// Sleeps until another thread or process changes `word` from `seen` and calls futex_wake, or
// until the timeout, a signal, or for no reason at all. False: a signal came.
inline bool futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen,
                       std::chrono::nanoseconds timeout) {
#ifdef __linux__
  // Without FUTEX_PRIVATE_FLAG: the word is shared between processes.
  const timespec relative{static_cast<time_t>(timeout.count() / 1'000'000'000),
                          static_cast<long>(timeout.count() % 1'000'000'000)};
  const long rc = syscall(SYS_futex, &word, FUTEX_WAIT, seen, &relative, nullptr, 0);
  return !(rc == -1 && errno == EINTR);
#else
  constexpr std::chrono::nanoseconds kPollInterval = std::chrono::microseconds(200);
  if (word.load() == seen) std::this_thread::sleep_for(std::min(timeout, kPollInterval));
  return true;
#endif
}

inline void futex_wake([[maybe_unused]] std::atomic<std::uint32_t>& word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
#endif
}

enum class Waited { kMessage, kStopped, kTimeout, kInterrupted };

// One process's handle. It owns nothing: the memory and the stop word outlive it.
class RingQueue {
 public:
  static std::size_t bytes(std::size_t num_producers, std::size_t capacity) {
    return sizeof(Doorbell) + num_producers * ring_bytes(capacity);
  }

  // `memory`: bytes() of shared memory; zeros, or in use by other handles of the same sizes.
  // `stop`: not 0 once waiting is over for good.
  // `bell`: the memory of the queue whose doorbell its producers ring; nullptr: its own.
  RingQueue(void* memory, std::size_t num_producers, std::size_t capacity,
            const std::atomic<std::uint32_t>* stop, void* bell = nullptr)
      : memory_(static_cast<std::byte*>(memory)),
        bell_(reinterpret_cast<Doorbell*>(bell == nullptr ? memory : bell)),
        num_producers_(num_producers), capacity_(capacity), stop_(stop) {
    if (num_producers == 0) throw std::invalid_argument("num_producers must be at least 1");
    if (capacity == 0 || (capacity & (capacity - 1)) != 0)
      throw std::invalid_argument("capacity must be a power of two");
    if (reinterpret_cast<std::uintptr_t>(memory) % kCacheLine != 0 ||
        reinterpret_cast<std::uintptr_t>(bell) % kCacheLine != 0)
      throw std::invalid_argument("memory must be aligned to 64 bytes");
  }

  // Puts all `count` messages or, if there is no room for all of them, none. Never blocks.
  // One thread at a time per producer.
  bool put(std::size_t producer, const std::uint64_t* messages, std::size_t count) {
    Ring& ring = ring_at(producer);
    const std::uint64_t tail = ring.tail.load(std::memory_order_relaxed);  // our own
    // Acquire, against get's release of `head`: the consumer has read the cells it gave back,
    // so they may be overwritten.
    const std::uint64_t used = tail - ring.head.load(std::memory_order_acquire);
    if (count > capacity_ - used) return false;
    for (std::size_t i = 0; i < count; ++i) cell(ring, tail + i) = messages[i];
    // Publish. As a release it orders the cells, and all that this process wrote before (the rows
    // that the message tells of), ahead of `tail`. It is seq_cst for the doorbell's sake: we store
    // `tail` then load `sleeping`, the consumer stores `sleeping` then loads `tail`. In the single
    // order of these four one store comes first, so at least one side sees the other's: either
    // we ring, or the consumer finds the message and does not sleep. With release and acquire
    // alone both loads may pass the stores, and the consumer sleeps beside a message.
    ring.tail.store(tail + count, std::memory_order_seq_cst);
    if (bell().sleeping.load(std::memory_order_seq_cst) != 0) wake();
    return true;
  }

  // Takes up to `max_messages` of what is there now. In order per producer. The producer after
  // the last one served comes first next time, so that a busy one cannot starve the others.
  std::size_t get(std::uint64_t* out, std::size_t max_messages) {
    std::size_t taken = 0;
    std::uint32_t& next_producer = reinterpret_cast<Doorbell*>(memory_)->next_producer;
    const std::size_t first = next_producer;
    for (std::size_t i = 0; i < num_producers_ && taken < max_messages; ++i) {
      const std::size_t producer = (first + i) % num_producers_;
      Ring& ring = ring_at(producer);
      const std::uint64_t head = ring.head.load(std::memory_order_relaxed);  // our own
      const std::uint64_t there = ring.tail.load(std::memory_order_acquire) - head;  // see put
      if (there == 0) continue;
      const std::size_t room = max_messages - taken;
      const std::size_t count = std::min<std::size_t>(there, room);
      for (std::size_t j = 0; j < count; ++j) out[taken + j] = cell(ring, head + j);
      ring.head.store(head + count, std::memory_order_release);  // gives the cells back
      taken += count;
      next_producer = static_cast<std::uint32_t>((producer + 1) % num_producers_);
    }
    return taken;
  }

  // The last messages of a producer that puts no more, at most capacity(), oldest first, whether
  // or not they were taken: cells stay as they are until they are needed again.
  std::size_t recent(std::size_t producer, std::uint64_t* out) {
    Ring& ring = ring_at(producer);
    const std::uint64_t tail = ring.tail.load(std::memory_order_acquire);
    const std::size_t count = std::min<std::uint64_t>(tail, capacity_);
    for (std::size_t i = 0; i < count; ++i) out[i] = cell(ring, tail - count + i);
    return count;
  }

  // Sleeps until there is a message, here or in one of `others`, which ring the same doorbell; or
  // the stop word is set, a signal comes or time is up. Looks without sleeping for the first `spin`
  // of it.
  Waited wait(std::chrono::nanoseconds timeout, std::chrono::nanoseconds spin,
              const std::vector<RingQueue*>& others = {}) {
    const auto start = Clock::now();
    const auto look = [&] { return this->look(others); };
    Waited seen = look();
    spin = std::min(spin, timeout);
    while (seen == Waited::kTimeout && spin.count() > 0 && Clock::now() - start < spin) seen = look();
    while (seen == Waited::kTimeout) {
      // The order matters. `rung` is read before the look, so that a ring between the look and
      // the futex call changes it and the call returns at once. `sleeping` is stored before the
      // look: see put.
      const std::uint32_t rung = bell().rung.load(std::memory_order_seq_cst);
      bell().sleeping.store(1, std::memory_order_seq_cst);
      seen = look();
      if (seen == Waited::kTimeout) {
        const auto left = timeout - (Clock::now() - start);
        if (left.count() <= 0) break;
        if (!futex_wait(bell().rung, rung, left)) seen = Waited::kInterrupted;
      }
    }
    // Relaxed: a producer that still reads 1 rings once for nothing.
    bell().sleeping.store(0, std::memory_order_relaxed);
    return seen;
  }

  // Makes the consumer look again, whether or not it sleeps.
  void wake() {
    bell().rung.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(bell().rung);
  }

  std::size_t num_producers() const { return num_producers_; }
  std::size_t capacity() const { return capacity_; }

 private:
  using Clock = std::chrono::steady_clock;

  static std::size_t ring_bytes(std::size_t capacity) {
    const std::size_t cells = capacity * sizeof(std::uint64_t);
    return sizeof(Ring) + (cells + kCacheLine - 1) / kCacheLine * kCacheLine;
  }

  // kTimeout stands for: nothing yet.
  Waited look(const std::vector<RingQueue*>& others) {
    if (stop_->load(std::memory_order_seq_cst) != 0) return Waited::kStopped;
    if (has_message()) return Waited::kMessage;
    for (RingQueue* other : others)
      if (other->has_message()) return Waited::kMessage;
    return Waited::kTimeout;
  }

  bool has_message() {
    for (std::size_t producer = 0; producer < num_producers_; ++producer) {
      Ring& ring = ring_at(producer);
      // seq_cst: the consumer's half of the bargain in put.
      if (ring.tail.load(std::memory_order_seq_cst) != ring.head.load(std::memory_order_relaxed))
        return true;
    }
    return false;
  }

  Doorbell& bell() { return *bell_; }

  Ring& ring_at(std::size_t producer) {
    return *reinterpret_cast<Ring*>(memory_ + sizeof(Doorbell) + producer * ring_bytes(capacity_));
  }

  std::uint64_t& cell(Ring& ring, std::uint64_t index) {
    return reinterpret_cast<std::uint64_t*>(&ring + 1)[index & (capacity_ - 1)];
  }

  std::byte* memory_;
  Doorbell* bell_;
  std::size_t num_producers_;
  std::size_t capacity_;
  const std::atomic<std::uint32_t>* stop_;
};

}  // namespace sfrl

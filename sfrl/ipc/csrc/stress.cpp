// Stress of index_queue.hpp under ThreadSanitizer: `make tsan`.
//
// Threads stand in for processes, because TSan watches one process. It knows nothing of futexes;
// that does no harm, as the queue's ordering rests on its atomics alone. Its own work hides lost
// wake-ups, so this is to be run without TSan as well: there, with an order weaker than seq_cst at
// the doorbell, a wake-up is lost.
//
// Exit code: 0; 1 if a message or a wake-up is lost; TSan's own (66) after a report.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

#include "index_queue.hpp"

namespace {

using namespace std::chrono_literals;
using sfrl::Waited;

constexpr std::size_t kProducers = 3;
constexpr std::size_t kCapacity = 16;  // small, so that the rings wrap and fill
constexpr auto kLost = 5s;             // a wait this long has lost its wake-up

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "stress: %s\n", what);
  std::_Exit(1);
}

struct Fixture {
  std::vector<std::uint64_t> words =
      std::vector<std::uint64_t>(sfrl::RingQueue::bytes(kProducers, kCapacity) / 8 + 8);
  std::atomic<std::uint32_t> stop{0};

  // Every thread has its own handle, as every process has.
  sfrl::RingQueue queue() { return {memory(), kProducers, kCapacity, &stop}; }

  // One that rings the doorbell of `other`'s.
  sfrl::RingQueue queue(Fixture& other) {
    return {memory(), kProducers, kCapacity, &other.stop, other.memory()};
  }

  void* memory() {
    void* memory = words.data();
    std::size_t room = words.size() * 8;
    std::align(sfrl::kCacheLine, room - sfrl::kCacheLine, memory, room);
    return memory;
  }
};

// Time decides, not what wait says: after a lost wake-up it still finds the message at its timeout.
Waited wait(sfrl::RingQueue& queue, const std::vector<sfrl::RingQueue*>& others = {}) {
  const auto start = std::chrono::steady_clock::now();
  const Waited waited = queue.wait(kLost, /*spin=*/0ns, others);
  require(std::chrono::steady_clock::now() - start < kLost, "a wake-up is lost");
  return waited;
}

// Producers always ahead of the consumer. Each message tells of a plain row that was written just
// before: a put that does not publish it is a data race that TSan reports.
void flood() {
  constexpr std::uint64_t kMessages = 200'000;  // per producer
  Fixture shared;
  std::vector<std::vector<std::uint64_t>> rows(kProducers, std::vector<std::uint64_t>(kMessages));
  std::vector<std::thread> producers;
  for (std::size_t producer = 0; producer < kProducers; ++producer)
    producers.emplace_back([&shared, &rows, producer] {
      sfrl::RingQueue queue = shared.queue();
      for (std::uint64_t i = 0; i < kMessages; ++i) {
        rows[producer][i] = i * kProducers + producer;
        const std::uint64_t message = producer << 32 | i;
        while (!queue.put(producer, &message, 1)) std::this_thread::yield();
      }
    });

  sfrl::RingQueue queue = shared.queue();
  std::vector<std::uint64_t> expected(kProducers, 0);
  std::uint64_t messages[kProducers * kCapacity];
  for (std::uint64_t received = 0; received < kProducers * kMessages;) {
    require(wait(queue) == Waited::kMessage, "flood: the wait ended without a message");
    const std::size_t count = queue.get(messages, std::size(messages));
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t producer = messages[i] >> 32, index = messages[i] & 0xFFFF'FFFF;
      require(index == expected[producer]++, "flood: a message is lost, doubled or out of order");
      require(rows[producer][index] == index * kProducers + producer, "flood: a row is unwritten");
    }
    received += count;
  }
  for (std::thread& thread : producers) thread.join();
}

// Each put comes about when the consumer, done with the one before, falls asleep.
void trickle() {
  constexpr std::uint64_t kMessages = 200'000;
  Fixture shared;
  std::atomic<std::uint64_t> received{0};
  std::thread producer([&] {
    sfrl::RingQueue queue = shared.queue();
    for (std::uint64_t i = 0; i < kMessages; ++i) {
      while (received.load(std::memory_order_relaxed) < i) std::this_thread::yield();
      for (std::uint64_t delay = i % 97 * 4; delay > 0; --delay)
        std::atomic_signal_fence(std::memory_order_seq_cst);  // so that the loop is kept
      require(queue.put(0, &i, 1), "trickle: an empty ring is full");
    }
  });

  sfrl::RingQueue queue = shared.queue();
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    require(wait(queue) == Waited::kMessage, "trickle: the wait ended without a message");
    std::uint64_t message;
    require(queue.get(&message, 1) == 1 && message == i, "trickle: not the message that was put");
    received.store(i + 1, std::memory_order_relaxed);
  }
  producer.join();
}

// A consumer of two queues with one doorbell, falling asleep as a message comes to this or to that.
void two_queues() {
  constexpr std::uint64_t kMessages = 100'000;
  Fixture shared[2];
  std::atomic<std::uint64_t> received{0};
  std::thread producer([&] {
    sfrl::RingQueue queues[2] = {shared[0].queue(), shared[1].queue(shared[0])};
    for (std::uint64_t i = 0; i < kMessages; ++i) {
      while (received.load(std::memory_order_relaxed) < i) std::this_thread::yield();
      for (std::uint64_t delay = i % 97 * 4; delay > 0; --delay)
        std::atomic_signal_fence(std::memory_order_seq_cst);
      require(queues[i % 3 % 2].put(0, &i, 1), "two queues: an empty ring is full");
    }
  });

  sfrl::RingQueue queues[2] = {shared[0].queue(), shared[1].queue(shared[0])};
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    require(wait(queues[0], {&queues[1]}) == Waited::kMessage, "two queues: no message");
    std::uint64_t message;
    require(queues[i % 3 % 2].get(&message, 1) == 1 && message == i, "two queues: not that one");
    received.store(i + 1, std::memory_order_relaxed);
  }
  producer.join();
}

// The stop word is set and the doorbell rung about when the consumer falls asleep.
void stop() {
  for (int round = 0; round < 2'000; ++round) {
    Fixture shared;
    std::thread stopper([&] {
      sfrl::RingQueue queue = shared.queue();
      shared.stop.store(1, std::memory_order_relaxed);  // as NumPy stores it
      queue.wake();
    });
    sfrl::RingQueue queue = shared.queue();
    require(wait(queue) == Waited::kStopped, "stop: the wait ended without a stop");
    stopper.join();
  }
}

}  // namespace

int main() {
  const auto start = std::chrono::steady_clock::now();
  flood();
  trickle();
  two_queues();
  stop();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("stress: nothing lost, %.1f s\n", seconds.count());
}

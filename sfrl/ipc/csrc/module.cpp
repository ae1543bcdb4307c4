// Python binding of index_queue.hpp: the extension module sfrl.ipc._index_queue.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "index_queue.hpp"

namespace py = pybind11;
using namespace std::chrono_literals;

namespace {

using Words = py::array_t<std::uint64_t, py::array::c_style>;
using StopWord = py::array_t<std::uint32_t, py::array::c_style>;

// A nap is at most this long, then Python's signal handlers run, the stop word is read again, and
// a message whose producer was killed before it could ring is found. Costs 20 wake-ups per second.
constexpr std::chrono::nanoseconds kLongestNap = 50ms;

// Keeps the arrays alive that the queue lives in, and checks what Python passes.
class PyRingQueue {
 public:
  PyRingQueue(Words memory, std::size_t num_producers, std::size_t capacity, StopWord stop,
              double spin_us, std::optional<Words> bell)
      : memory_(std::move(memory)), stop_(std::move(stop)), bell_(std::move(bell)),
        queue_(memory_.mutable_data(), num_producers, capacity,
               reinterpret_cast<const std::atomic<std::uint32_t>*>(stop_.data()),
               bell_ ? bell_->mutable_data() : nullptr),
        spin_(static_cast<std::int64_t>(spin_us * 1e3)) {
    const std::size_t needed = sfrl::RingQueue::bytes(num_producers, capacity);
    if (static_cast<std::size_t>(memory_.nbytes()) < needed)
      throw py::value_error("memory has " + std::to_string(memory_.nbytes()) + " bytes, needs " +
                            std::to_string(needed));
    if (stop_.size() < 1) throw py::value_error("stop has no element");
  }

  bool put(std::uint64_t message, std::size_t producer) {
    return queue_.put(checked(producer), &message, 1);
  }

  bool put_many(const Words& messages, std::size_t producer) {
    return queue_.put(checked(producer), messages.data(), static_cast<std::size_t>(messages.size()));
  }

  py::list get_many(std::size_t max_messages) {
    taken_.resize(std::min(max_messages, queue_.num_producers() * queue_.capacity()));
    return first_taken(queue_.get(taken_.data(), taken_.size()));
  }

  py::list recent(std::size_t producer) {
    taken_.resize(queue_.capacity());
    return first_taken(queue_.recent(checked(producer), taken_.data()));
  }

  bool wait(double timeout_s, const std::vector<PyRingQueue*>& others) {
    using Seconds = std::chrono::duration<double>;
    const auto start = std::chrono::steady_clock::now();
    std::vector<sfrl::RingQueue*> queues;
    for (PyRingQueue* other : others) queues.push_back(&other->queue_);
    for (std::chrono::nanoseconds spin = spin_;; spin = 0ns) {
      // In double, so that an infinite timeout works.
      const Seconds left = Seconds(timeout_s) - (std::chrono::steady_clock::now() - start);
      const bool is_last = left <= kLongestNap;
      const auto nap = is_last ? std::chrono::duration_cast<std::chrono::nanoseconds>(left) : kLongestNap;
      sfrl::Waited waited;
      {
        py::gil_scoped_release release;
        waited = queue_.wait(nap, spin, queues);
      }
      if (waited == sfrl::Waited::kMessage) return true;
      if (waited == sfrl::Waited::kStopped) return false;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (waited == sfrl::Waited::kTimeout && is_last) return false;
    }
  }

  void wake() { queue_.wake(); }

 private:
  std::size_t checked(std::size_t producer) const {
    if (producer >= queue_.num_producers())
      throw py::index_error("producer " + std::to_string(producer) + " of a queue with " +
                            std::to_string(queue_.num_producers()) + " producers");
    return producer;
  }

  py::list first_taken(std::size_t count) const {
    py::list messages(count);
    for (std::size_t i = 0; i < count; ++i)
      PyList_SET_ITEM(messages.ptr(), static_cast<py::ssize_t>(i), py::int_(taken_[i]).release().ptr());
    return messages;
  }

  Words memory_;
  StopWord stop_;
  std::optional<Words> bell_;
  sfrl::RingQueue queue_;
  std::chrono::nanoseconds spin_;
  std::vector<std::uint64_t> taken_;
};

}  // namespace

PYBIND11_MODULE(_index_queue, m) {
  m.doc() = "Wait-free index queues in shared memory. The contract is in _index_queue.pyi.";
  m.def("memory_bytes", &sfrl::RingQueue::bytes, py::arg("num_producers"), py::arg("capacity"));
  py::class_<PyRingQueue>(m, "RingQueue")
      // noconvert: a converted copy would be a queue of its own.
      .def(py::init<Words, std::size_t, std::size_t, StopWord, double, std::optional<Words>>(),
           py::arg("memory").noconvert(), py::arg("num_producers"), py::arg("capacity"),
           py::arg("stop").noconvert(), py::arg("spin_us") = 0.0,
           py::arg("bell").noconvert() = py::none())
      .def("put", &PyRingQueue::put, py::arg("message"), py::arg("producer"))
      .def("put_many", &PyRingQueue::put_many, py::arg("messages").noconvert(), py::arg("producer"))
      .def("get_many", &PyRingQueue::get_many, py::arg("max_messages"))
      .def("recent", &PyRingQueue::recent, py::arg("producer"))
      .def("wait", &PyRingQueue::wait, py::arg("timeout_s"),
           py::arg("others") = std::vector<PyRingQueue*>{})
      .def("wake", &PyRingQueue::wake);
}

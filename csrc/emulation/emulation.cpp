#include <signal.h>

#include <algorithm>
#include <memory>

#include "device.cuh"

// Ours is an order of magnitude faster than ucontext's, which asks the kernel for the signal mask at each switch.
#if defined(__x86_64__) && defined(__linux__) && !defined(PYUNETSEP_UCONTEXT)
#define OWN_SWITCH
#else
#include <ucontext.h>
#endif

// ---- Fibers: a stack and the registers that a call must keep.

#ifdef OWN_SWITCH
extern "C" void pyunetsep_switch_stack(void** save, void* load);
asm(R"(
.text
.globl pyunetsep_switch_stack
pyunetsep_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace pyunetsep::emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 1024;  // before and after shared memory

#ifdef OWN_SWITCH
struct Context {
  void* stack_pointer = nullptr;

  void prepare(unsigned char* stack, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t{63};
    auto* words = reinterpret_cast<void**>(top);
    *--words = nullptr;  // where entry would return to; keeps the stack aligned as after a call
    *--words = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--words = nullptr;
    stack_pointer = words;
  }
  void leave_for(Context& other) { pyunetsep_switch_stack(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void prepare(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void leave_for(Context& other) { swapcontext(&context, &other.context); }
};
#endif

struct Warp {
  uint32_t ready = 0;  // a bit a lane
  uint32_t met = 0;    // lanes that wait for the others of the warp
  uint32_t alive = 0;
  const char* step = nullptr;  // that they do together ...
  Line line = 0;               // ... and where
  void* operands[32];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Context> contexts;
  std::vector<Warp> warps;
  size_t alive = 0, at_barrier = 0;
  Line barrier_line = 0;
  Context main;
  const std::function<void()>* thread = nullptr;
  std::string failure;
  bool failed = false;
  size_t shared_bytes = 0;
};
Block* block = nullptr;

// Stacks stay for the next launches: to touch them anew would cost more than most tests do.
unsigned char* stacks(size_t count) {
  static std::unique_ptr<unsigned char[]> memory;
  static size_t size = 0;
  if (size < count) {
    memory.reset(new unsigned char[count * kStackBytes]);
    size = count;
  }
  return memory.get();
}

size_t index_of(const Fiber& fiber) { return static_cast<size_t>(&fiber - block->fibers.data()); }

void run_fiber(size_t index) {
  Context& from = block->contexts[index_of(*running)];
  running = &block->fibers[index];
  from.leave_for(block->contexts[index]);
}

// The next of the ready lanes after `lane`, in the order that is asked for; -1: none.
int next_lane(uint32_t ready, int lane) {
  if (ready == 0) return -1;
  for (int step = 1; step <= 32; ++step) {
    const int candidate = (reversed ? lane - step : lane + step) & 31;
    if (ready >> candidate & 1) return candidate;
  }
  return -1;
}

// Leaves the fiber that runs, which is not ready any more, for one that is: of its own warp if there is one.
void run_another() {
  const int warps = static_cast<int>(block->warps.size());
  int lane = running->lane;
  for (int step = 0; step < warps; ++step) {
    const int warp = ((reversed ? running->warp - step : running->warp + step) % warps + warps) % warps;
    const int next = next_lane(block->warps[warp].ready, lane);
    if (next >= 0) return run_fiber(static_cast<size_t>(warp) * 32 + next);
    lane = reversed ? 32 : -1;  // other warps begin with their first lane
  }
  if (block->alive > 0) fail("threads wait for others that never come: a barrier or a warp's joint step is divergent");
  block->contexts[index_of(*running)].leave_for(block->main);
}

void release_barrier() {
  block->at_barrier = 0;
  for (Warp& warp : block->warps) warp.ready = warp.alive;
}

void run_thread() {
  (*block->thread)();
  Warp& warp = block->warps[running->warp];
  const uint32_t bit = uint32_t{1} << running->lane;
  warp.ready &= ~bit;
  warp.alive &= ~bit;
  --block->alive;
  require(running->copies.empty(), "a thread ends while copies of its own are on their way");
  if (block->alive > 0 && block->at_barrier == block->alive) release_barrier();
  run_another();
}

// Calls body(byte, what it should be): 0xfff5 again and again, NaN in every type, but not the one that the memory
// between starts as.
template <typename Body>
void for_each_guard(Body body) {
  for (unsigned char* part : {shared_memory - kGuardBytes, shared_memory + block->shared_bytes}) {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      body(part[i], reinterpret_cast<uintptr_t>(part + i) % 2 ? 0xff : 0xf5);
    }
  }
}

void run_block(dim3 size, size_t shared_bytes) {
  const size_t threads = size_t{size.x} * size.y * size.z;
  std::memset(shared_memory, 0xff, shared_bytes);  // NaN, in every type
  for_each_guard([](unsigned char& byte, int guard) { byte = static_cast<unsigned char>(guard); });
  block->alive = threads;
  block->at_barrier = 0;
  for (Warp& warp : block->warps) warp = Warp{};
  unsigned char* const stack = stacks(threads);
  for (size_t i = 0; i < threads; ++i) {
    const unsigned t = static_cast<unsigned>(i);
    Fiber& fiber = block->fibers[i];
    fiber.thread_index = dim3(t % size.x, t / size.x % size.y, t / (size.x * size.y));
    fiber.warp = static_cast<int>(i / 32);
    fiber.lane = static_cast<int>(i % 32);
    fiber.group = 0;
    fiber.copies.clear();
    block->contexts[i].prepare(stack + i * kStackBytes, run_thread);
    block->warps[i / 32].alive |= uint32_t{1} << (i % 32);
  }
  for (Warp& warp : block->warps) warp.ready = warp.alive;
  const size_t first = reversed ? threads - 1 : 0;
  running = &block->fibers[first];
  block->main.leave_for(block->contexts[first]);
  if (block->failed) throw std::runtime_error("emulated launch: " + block->failure);
  bool intact = true;
  for_each_guard([&](unsigned char byte, int guard) { intact &= byte == guard; });
  if (!intact) throw std::runtime_error("emulated launch: wrote outside shared memory");
}

void apply(const Copy& copy) {
  if (copy.global == nullptr) {
    std::memset(copy.shared, 0, 16);
  } else {
    std::memcpy(copy.shared, copy.global, 16);
  }
}

// Every 16-bit element, widened: a conversion for each factor would take longer than the products.
template <typename T>
const float* widened() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) values[bits] = cuda::float_of(T{static_cast<uint16_t>(bits)});
    return values;
  }();
  return table.data();
}

struct Multiplication {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
void multiply_warp(void* const* operands) {
  const float* const widen = widened<T>();
  float a[16][16], b[16][8], sums[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Multiplication*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float* const pair = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
      pair[0] = widen[mine.a[i] & 0xffff];
      pair[1] = widen[mine.a[i] >> 16];
      sums[g + i / 2 * 8][2 * t + i % 2] = mine.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = widen[mine.b[i] & 0xffff];
      b[2 * t + 8 * i + 1][g] = widen[mine.b[i] >> 16];
    }
  }
  for (int row = 0; row < 16; ++row) {
    float sum[8];
    for (int n = 0; n < 8; ++n) sum[n] = sums[row][n];
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
    }
    for (int n = 0; n < 8; ++n) sums[row][n] = sum[n];
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = *static_cast<Multiplication*>(operands[lane]);
    for (int i = 0; i < 4; ++i) mine.d[i] = sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

void require_same_line(Line first, Line line) {
  if (first == line) return;
  fail("threads wait for each other in lines " + std::to_string(first) + " and " + std::to_string(line));
}

template <typename T>
void multiply(const char* step, Line line, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Multiplication mine{d, a, {b0, b1}};
  meet(step, line, &mine, multiply_warp<T>);
}

}  // namespace

void fail(const std::string& why) {
  if (block == nullptr || running == nullptr) throw std::runtime_error("emulated launch: " + why);
  block->failure = why + " (block " + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
                   std::to_string(block_index.z) + ", thread " + std::to_string(index_of(*running)) + ")";
  block->failed = true;
  block->contexts[index_of(*running)].leave_for(block->main);  // the fibers are left as they are
  std::abort();
}

void launch(const char* source, dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& thread) {
  running = nullptr;
  if (launched.find(source) == std::string::npos) launched.append(source).append("\n");
  require(grid.x >= 1 && grid.y >= 1 && grid.z >= 1, "a grid has at least one block");
  require(grid.x <= 2147483647 && grid.y <= 65535 && grid.z <= 65535,
          "a grid has at most 2^31 - 1, 65535, 65535 blocks");
  require(size.x >= 1 && size.y >= 1 && size.z >= 1, "a block has at least one thread");
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  require(threads <= 1024 && size.z <= 64, "a block has at most 1024 threads, 64 deep");
  bool known = architecture == 0;
  for (const Architecture& one : kArchitectures) {
    if (architecture != 0 && architecture != one.number) continue;
    known = true;
    if (shared_bytes > one.shared_bytes) {
      fail("a block has at most " + std::to_string(one.shared_bytes / 1024) + " KiB of shared memory on sm_" +
           std::to_string(one.number) + ", got " + std::to_string(shared_bytes) + " bytes");
    }
  }
  require(known, "no such architecture");
  require(architecture != 0 || shared_bytes <= static_cast<size_t>(facts.shared_bytes),
          "a block has more shared memory than the device has");

  Block whole;
  whole.fibers.resize(threads);
  whole.contexts.resize(threads);
  whole.warps.resize((threads + 31) / 32);
  whole.thread = &thread;
  whole.shared_bytes = shared_bytes;
  std::vector<unsigned char> memory(shared_bytes + 2 * kGuardBytes + 128);
  const auto start = (reinterpret_cast<uintptr_t>(memory.data()) + kGuardBytes + 127) & ~uintptr_t{127};
  shared_memory = reinterpret_cast<unsigned char*>(start);
  grid_size = grid;
  block_size = size;
  block = &whole;
  // An address that is no memory, such as one in the page behind an input, ends the launch and not the process.
  struct Ended {
    struct sigaction before[2];

    Ended() {
      struct sigaction action = {};
      action.sa_handler = [](int) { fail("accessed memory that is not there"); };
      action.sa_flags = SA_NODEFER;  // the handler does not return
      sigaction(SIGSEGV, &action, &before[0]);
      sigaction(SIGBUS, &action, &before[1]);
    }
    ~Ended() {
      sigaction(SIGSEGV, &before[0], nullptr);
      sigaction(SIGBUS, &before[1], nullptr);
      block = nullptr, running = nullptr, shared_memory = nullptr;
    }
  } ended;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = reversed ? blocks - 1 - i : i;
    block_index = dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                       static_cast<unsigned>(at / grid.x / grid.y));
    run_block(size, shared_bytes);
  }
}

void sync_threads(Line line) {
  if (block->at_barrier == 0) block->barrier_line = line;
  require_same_line(block->barrier_line, line);
  if (++block->at_barrier == block->alive) return release_barrier();
  block->warps[running->warp].ready &= ~(uint32_t{1} << running->lane);
  run_another();
}

void meet(const char* step, Line line, void* operand, void (*act)(void* const*)) {
  Warp& warp = block->warps[running->warp];
  const uint32_t bit = uint32_t{1} << running->lane;
  if (warp.met == 0) warp.step = step, warp.line = line;
  require(std::strcmp(warp.step, step) == 0, "lanes of a warp do different things where they should do one together");
  require_same_line(warp.line, line);
  warp.met |= bit;
  warp.operands[running->lane] = operand;
  if (warp.met == 0xffffffff) {
    act(warp.operands);
    warp.ready = warp.alive;
    warp.met = 0;
    return;
  }
  warp.ready &= ~bit;
  run_another();
}

void require_shared(const void* p, size_t bytes, const char* what) {
  const auto* at = static_cast<const unsigned char*>(p);
  require(shared_memory <= at && at + bytes <= shared_memory + block->shared_bytes, what);
}

namespace {

// What a lane brings to load_matrices, and gets.
struct Loading {
  uint32_t* x;
  const void* row;

  Loading(uint32_t (&x)[4], const void* row) : x(x), row(row) {
    require_shared(row, 16, "load_matrices wants rows in shared memory");
    require_aligned(row, "load_matrices wants rows at multiples of 16 bytes");
  }
};

const unsigned char* row_of(void* const* operands, int lane) {
  return static_cast<const unsigned char*>(static_cast<Loading*>(operands[lane])->row);
}

}  // namespace

void load_matrices(uint32_t (&x)[4], const void* row, Line line) {
  Loading mine(x, row);
  meet("load_matrices", line, &mine, [](void* const* operands) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::memcpy(static_cast<Loading*>(operands[lane])->x + matrix,
                    row_of(operands, matrix * 8 + lane / 4) + lane % 4 * 4, 4);
      }
    }
  });
}

void load_turned_matrices(uint32_t (&x)[4], const void* row, Line line) {
  Loading mine(x, row);
  meet("load_turned_matrices", line, &mine, [](void* const* operands) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          std::memcpy(pair + i, row_of(operands, matrix * 8 + lane % 4 * 2 + i) + lane / 4 * 2, 2);
        }
        std::memcpy(static_cast<Loading*>(operands[lane])->x + matrix, pair, 4);
      }
    }
  });
}

void multiply_add_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Line line) {
  multiply<cuda::Half>("multiply_add of halves", line, d, a, b0, b1);
}

void multiply_add_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Line line) {
  multiply<cuda::Bfloat16>("multiply_add of bfloat16s", line, d, a, b0, b1);
}

void copy_async16(void* shared, const void* global, bool inside) {
  require_shared(shared, 16, "copy_async16 wants a target in shared memory");
  require_aligned(shared, "copy_async16 wants a target that is a multiple of 16");
  if (inside) require_aligned(global, "copy_async16 wants a source that is a multiple of 16");
  const Copy copy{shared, inside ? global : nullptr, running->group};
  if (early_copies) {
    apply(copy);
  } else {
    running->copies.push_back(copy);
  }
}

void wait_copies(int groups) {
  auto& copies = running->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group < running->group - groups) apply(copies[done++]);
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace pyunetsep::emulation

// What -fsanitize=bounds calls where an index is outside its array, such as one of registers.
extern "C" void __ubsan_handle_out_of_bounds_abort(const void* where, uintptr_t index) {
  struct Where {
    const char* file;
    uint32_t line, column;
  };
  const auto& place = *static_cast<const Where*>(where);
  pyunetsep::emulation::fail("index " + std::to_string(static_cast<int64_t>(index)) + " is outside an array, " +
                             place.file + ":" + std::to_string(place.line));
}

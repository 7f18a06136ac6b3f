// A ggml backend of two devices whose memory no host may touch: it computes as the CPU backend does, and between
// computations its pages are closed, so that a stray access ends the process. In this it is like two GPUs, on machines that
// have none.
#include <sys/mman.h>

#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"

namespace {

// Functions of the ggml that the process already has.
struct Ggml {
  decltype(&ggml_backend_buffer_init) buffer_init;
  decltype(&ggml_backend_dev_by_type) dev_by_type;
  decltype(&ggml_backend_dev_init) dev_init;
  decltype(&ggml_backend_dev_supports_op) dev_supports_op;
  decltype(&ggml_backend_dev_backend_reg) dev_backend_reg;
  decltype(&ggml_backend_reg_get_proc_address) reg_get_proc_address;
  decltype(&ggml_backend_graph_compute) graph_compute;
  decltype(&ggml_backend_free) backend_free;
};

constexpr size_t N_DEVICES = 2;

Ggml ggml;
const char *name;
std::mutex mutex;
std::set<std::pair<void *, size_t>> regions;
int users = 0;

void open(bool opens) {
  std::lock_guard<std::mutex> lock(mutex);
  users += opens ? 1 : -1;
  if (users != (opens ? 1 : 0)) return;
  for (const auto &region : regions) mprotect(region.first, region.second, opens ? PROT_READ | PROT_WRITE : PROT_NONE);
}

struct Open {
  Open() { open(true); }
  ~Open() { open(false); }
};

// Buffers

void free_buffer(ggml_backend_buffer_t buffer) {
  std::lock_guard<std::mutex> lock(mutex);
  regions.erase({buffer->context, buffer->size});
  munmap(buffer->context, buffer->size);
}

void *get_base(ggml_backend_buffer_t buffer) { return buffer->context; }

void memset_tensor(ggml_backend_buffer_t, ggml_tensor *tensor, uint8_t value, size_t offset, size_t size) {
  Open access;
  memset(static_cast<char *>(tensor->data) + offset, value, size);
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor *tensor, const void *data, size_t offset, size_t size) {
  Open access;
  memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor *tensor, void *data, size_t offset, size_t size) {
  Open access;
  memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

void get_tensor_2d(ggml_backend_buffer_t, const ggml_tensor *tensor, void *data, size_t offset, size_t size,
                   size_t n_copies, size_t stride_tensor, size_t stride_data) {
  Open access;
  const char *from = static_cast<const char *>(tensor->data) + offset;
  for (size_t i = 0; i < n_copies; i++) {
    memcpy(static_cast<char *>(data) + i * stride_data, from + i * stride_tensor, size);
  }
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
  Open access;
  memset(buffer->context, value, buffer->size);
}

const char *get_name(ggml_backend_buffer_type_t) { return name; }

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
  size = (size + 4095) / 4096 * 4096 + 4096;
  void *memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex);
    regions.insert({memory, size});
    if (users > 0) mprotect(memory, size, PROT_READ | PROT_WRITE);
  }
  ggml_backend_buffer_i functions = {};
  functions.free_buffer = free_buffer;
  functions.get_base = get_base;
  functions.memset_tensor = memset_tensor;
  functions.set_tensor = set_tensor;
  functions.get_tensor = get_tensor;
  functions.get_tensor_2d = get_tensor_2d;
  functions.clear = clear;
  return ggml.buffer_init(type, functions, memory, size);
}

size_t get_alignment(ggml_backend_buffer_type_t) { return 64; }

ggml_backend_buffer_type buffer_types[N_DEVICES] = {};

// Backend: the CPU's, with the memory open meanwhile.

const char *backend_name(ggml_backend_t) { return name; }

void free_backend(ggml_backend_t backend) {
  ggml.backend_free(static_cast<ggml_backend_t>(backend->context));
  delete backend;
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph *graph) {
  Open access;
  return ggml.graph_compute(static_cast<ggml_backend_t>(backend->context), graph);
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
  static uint8_t guid[16] = "stepflow-double";
  ggml_backend_dev_t cpu_device = ggml.dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  ggml_backend_t cpu = ggml.dev_init(cpu_device, nullptr);
  void *set = ggml.reg_get_proc_address(ggml.dev_backend_reg(cpu_device), "ggml_backend_set_n_threads");
  reinterpret_cast<ggml_backend_set_n_threads_t>(set)(cpu, 2);
  ggml_backend_i functions = {};
  functions.get_name = backend_name;
  functions.free = free_backend;
  functions.graph_compute = graph_compute;
  return new ggml_backend{&guid, functions, device, cpu};
}

// Device

const char *device_name(ggml_backend_dev_t) { return name; }

void get_memory(ggml_backend_dev_t, size_t *free, size_t *total) { *free = *total = size_t(16) << 30; }

enum ggml_backend_dev_type get_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void get_props(ggml_backend_dev_t device, ggml_backend_dev_props *props) {
  *props = {};
  props->name = props->description = name;
  props->type = get_type(device);
  get_memory(device, &props->memory_free, &props->memory_total);
}

ggml_backend_buffer_type_t get_buffer_type(ggml_backend_dev_t device) {
  return static_cast<ggml_backend_buffer_type_t>(device->context);
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor *op) {
  return ggml.dev_supports_op(ggml.dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) { return type->device == device; }

ggml_backend_device devices[N_DEVICES] = {};

// Registry

const char *reg_name(ggml_backend_reg_t) { return name; }

size_t get_device_count(ggml_backend_reg_t) { return N_DEVICES; }

ggml_backend_dev_t get_device(ggml_backend_reg_t, size_t index) { return &devices[index]; }

ggml_backend_reg reg = {};

}  // namespace

// Opens and closes the memory: kernels of the device touch it too.
extern "C" void double_open(bool opens) { open(opens); }

// The backend, under a name of the caller's choice.
extern "C" ggml_backend_reg_t double_backend(const char *called, const Ggml *functions) {
  name = called;
  ggml = *functions;
  reg.api_version = GGML_BACKEND_API_VERSION;
  reg.iface = {reg_name, get_device_count, get_device, nullptr};
  for (size_t i = 0; i < N_DEVICES; i++) {
    ggml_backend_device &device = devices[i];
    device.reg = &reg;
    device.context = &buffer_types[i];
    device.iface.get_name = device.iface.get_description = device_name;
    device.iface.get_memory = get_memory;
    device.iface.get_type = get_type;
    device.iface.get_props = get_props;
    device.iface.init_backend = init_backend;
    device.iface.get_buffer_type = get_buffer_type;
    device.iface.supports_op = supports_op;
    device.iface.supports_buft = supports_buft;
    buffer_types[i].device = &device;
    buffer_types[i].iface.get_name = get_name;
    buffer_types[i].iface.alloc_buffer = alloc_buffer;
    buffer_types[i].iface.get_alignment = get_alignment;
  }
  return &reg;
}

/* A library with the entry points of Nvidia's NVML that the agent uses, which answers as it is compiled to:
 *   (nothing)        two processors
 *   LOST             the second one does not tell its memory
 *   INIT_RESULT=n    what nvmlInit_v2 returns
 *   HANG, CRASH      what it does before that
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, GPU_IS_LOST = 15 };

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;

struct device {
    const char *name, *uuid;
    unsigned bus;
    unsigned long long total;
};

static struct device devices[] = {
    {"NVIDIA A10", "GPU-11111111-2222-3333-4444-555555555555", 0x81, 24146608128ULL},
    {"NVIDIA H100 PCIe", "GPU-66666666-7777-8888-9999-000000000000", 0xc1, 85520809984ULL},
};

int nvmlInit_v2(void) {
#ifdef HANG
    for (;;)
        pause();
#endif
#ifdef CRASH
    *(volatile int *)0 = 1;
#endif
#ifdef INIT_RESULT
    return INIT_RESULT;
#else
    return SUCCESS;
#endif
}

int nvmlShutdown(void) { return SUCCESS; }

static int tell(char *to, unsigned room, const char *text) {
    if (strlen(text) >= room)
        return INVALID_ARGUMENT;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *to, unsigned room) { return tell(to, room, "550.54.15"); }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12040;
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = sizeof devices / sizeof *devices;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index >= sizeof devices / sizeof *devices)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *device, char *to, unsigned room) { return tell(to, room, device->name); }

int nvmlDeviceGetUUID(struct device *device, char *to, unsigned room) { return tell(to, room, device->uuid); }

int nvmlDeviceGetPciInfo_v3(struct device *device, pci_info *info) {
    memset(info, 0, sizeof *info);
    info->bus = device->bus;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", device->bus);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "0000:%02X:00.0", device->bus);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(struct device *device, memory_v2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24))
        return INVALID_ARGUMENT;
#ifdef LOST
    if (device == &devices[1])
        return GPU_IS_LOST;
#endif
    memory->total = memory->free = device->total;
    memory->reserved = memory->used = 0;
    return SUCCESS;
}

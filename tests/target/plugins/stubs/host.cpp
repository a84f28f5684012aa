// A process with a registry of its own that opens the library and, if asked to, calls zt_register_plugins.
#include <NvInferRuntime.h>

#include <cstdio>
#include <dlfcn.h>

using namespace nvinfer1;

struct Registry : IPluginRegistry {
    bool registerCreator(IPluginCreatorInterface& creator, const char* name_space) noexcept override
    {
        std::printf("%s in %s\n", static_cast<IPluginCreatorV3One&>(creator).getPluginName(), name_space);
        return true;
    }
};

extern "C" IPluginRegistry* getPluginRegistry() noexcept
{
    static Registry registry;
    return &registry;
}

int main(int count, char** arguments)
{
    void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    std::printf("opened: %d\n", library != nullptr);
    if (count > 2) {
        std::printf("registered: %d\n", reinterpret_cast<int (*)()>(dlsym(library, "zt_register_plugins"))());
    }
    return 0;
}

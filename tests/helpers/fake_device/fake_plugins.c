// What the fake toolchain "compiles" the plugin library to: its exported functions, and nothing behind them.

const char *zt_plugin_version(void) { return ZT_PLUGIN_ABI; }

int zt_tensorrt_version(void) { return 100300; }

void *const *getCreators(int *count) {
    *count = 0;
    return 0;
}

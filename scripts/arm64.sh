#!/usr/bin/env bash
# Emulated Arm boards: what runs on a device (the wheel, ONNX Runtime, the C++ runner), with 64-bit Arm's own instructions.
#
#   scripts/arm64.sh [DIR]                                   (default: build/arm64)
#   DIR/boards/raspberry-pi5/bin/ztdeploy verify BUNDLE      also python and ztdeploy-run
#
# Debian's packages and PyPI's wheels come from where apt-get and uv of this machine are configured to take them; nothing
# is installed outside of DIR, and nobody has to be root. A second call renews only the wheel and the C++ runner.
# A board of tests/arm64/boards is the core that QEMU emulates and what its kernel says of it. Whoever measures time here
# measures QEMU.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "error: $1" >&2
    exit 2
}
python=${PYTHON:-.venv/bin/python}
uv=$(command -v "$(dirname "$python")/uv" uv | head -n 1) || true
[ -n "$uv" ] || die "no uv here; run: make setup"
lacking=''
for tool in apt-get:apt dpkg-deb:dpkg qemu-aarch64-static:qemu-user-static aarch64-linux-gnu-g++:g++-aarch64-linux-gnu cmake:cmake make:make; do
    command -v "${tool%%:*}" >/dev/null || lacking+=" ${tool##*:}"
done
[ -z "$lacking" ] || die "not installed:$lacking; expected Debian with them; run: apt-get install$lacking"
qemu=$(command -v qemu-aarch64-static)
mkdir -p "${1:-build/arm64}"
dir=$(cd "${1:-build/arm64}" && pwd)

# The system: packages of Debian, unpacked and not configured, as root of nothing.
if [ ! -f "$dir/root/.complete" ]; then
    rm -rf "$dir/root"
    mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/root/usr/lib" "$dir/root/usr/bin"
    ln -s usr/lib usr/bin "$dir/root/" # of newer systems they are the only ones, and programs ask for /lib
    : >"$dir/apt/status"
    options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= -o Acquire::Languages=none
        -o Dir::State="$dir/apt" -o Dir::State::status="$dir/apt/status" -o Dir::Cache="$dir/apt")
    apt-get "${options[@]}" update || true # whatever does not have arm64 is not asked
    apt-get "${options[@]}" install --yes --download-only --no-install-recommends \
        python3-minimal libpython3-stdlib libstdc++6 libssl-dev libpng-dev libjpeg62-turbo-dev >&2 ||
        die "apt-get has no packages for arm64; expected sources of Debian that hold them; see /etc/apt"
    for package in "$dir"/apt/archives/*.deb; do
        dpkg-deb --extract "$package" "$dir/root"
    done
    touch "$dir/root/.complete"
fi
version=$(basename "$(echo "$dir"/root/usr/bin/python3.*[0-9])")

# What pip would install on the board, with the versions that are known to work together.
rm -rf "$dir/wheel" "$dir/packages"
"$uv" build --quiet --wheel --out-dir "$dir/wheel" .
"$uv" pip install --quiet --target "$dir/packages" --python-platform aarch64-manylinux_2_28 \
    --python-version "${version#python}" --only-binary :all: --constraint constraints.txt "$dir"/wheel/*.whl

json=$("$python" -c 'import nlohmann_json as it; print(it.__path__[0] + "/include")')
cmake -S cpp -B "$dir/cpp" -DCMAKE_TOOLCHAIN_FILE="$PWD/cpp/cmake/aarch64.cmake" -DCMAKE_SYSROOT="$dir/root" -DZTDEPLOY_TESTS=ON \
    -DONNXRUNTIME_ROOT="$dir/packages/onnxruntime" -DNLOHMANN_JSON_INCLUDE_DIR="$json" >"$dir/cpp.log"
cmake --build "$dir/cpp" --parallel 2 >>"$dir/cpp.log" 2>&1 || { tail -n 30 "$dir/cpp.log" >&2; die "cpp/ was not compiled; see $dir/cpp.log"; }

# Boards. QEMU looks for every file below `system` first, so processes see the board's own /proc/cpuinfo. ONNX Runtime
# 1.32 crashes on that of another kind of processor.
rm -rf "$dir/boards"
cp -r tests/arm64/boards "$dir/boards"
for board in "$dir"/boards/*; do
    mkdir -p "$board/system" "$board/bin" "$board/lib/$version"
    mv "$board/proc" "$board/system/"
    ln -s "$dir"/root/{bin,etc,lib,usr} "$board/system/"
    ln -s "$dir/packages" "$board/lib/$version/site-packages"
    echo 'home = /usr/bin' >"$board/pyvenv.cfg"
    run="'$qemu' -cpu $(cat "$board/cpu") -L '$board/system'"
    # Whom an emulated process starts is started by this machine: `sys.executable` is this very script.
    cat >"$board/bin/python" <<END
#!/bin/sh
export PYTHONPYCACHEPREFIX='$dir/bytecode'
exec $run -0 '$board/bin/python' '$board/system/usr/bin/$version' "\$@"
END
    cat >"$board/bin/ztdeploy" <<END
#!/bin/sh
exec '$board/bin/python' -m ztdeploy "\$@"
END
    for program in ztdeploy-run ztdeploy-check; do
        cat >"$board/bin/$program" <<END
#!/bin/sh
exec $run '$dir/cpp/$program' "\$@"
END
    done
    chmod +x "$board"/bin/*
done
echo "$dir/boards: $(ls "$dir/boards" | tr '\n' ' ')"

# For 64-bit Arm boards, on another machine: cmake -DCMAKE_TOOLCHAIN_FILE=cpp/cmake/aarch64.cmake, with
# -DCMAKE_SYSROOT=FOLDER where the libraries of the board's system lie elsewhere than the cross-compiler's own.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH) # headers alone, such as JSON's, are the same everywhere
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

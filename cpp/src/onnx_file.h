// Which files an ONNX graph makes a runtime read, found out before a runtime opens it. A graph from outside may name any
// file as the place of its weights, loop forever, or ask for terabytes; some runtimes hang or crash on such a graph.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ztdeploy {

// Where a constant lies that is in a file beside the graph.
struct Outside {
    std::string file;
    std::uint64_t begin = 0;
};

// A constant of a graph, by ONNX's number of its type.
struct Constant {
    std::int64_t type = 0;
    std::vector<std::int64_t> shape;
    Outside outside; // no file: in the graph itself
};

// Files beside a graph and the least size that each must have, in bytes. Throws Error for what is no plain graph: one
// with loops, functions, sparse tensors, or tensors larger than what they are made of.
std::map<std::string, std::uint64_t> read_graph(const std::filesystem::path& path);
// Its constants by name, of a graph that has passed.
std::map<std::string, Constant> constants_of(const std::filesystem::path& path);

} // namespace ztdeploy

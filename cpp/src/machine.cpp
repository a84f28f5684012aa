#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

std::string variable(const char* name)
{
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
}

Names features()
{
    std::string found = variable("ZTDEPLOY_CPU_FLAGS");
    std::replace(found.begin(), found.end(), ',', ' ');
    std::ifstream report("/proc/cpuinfo");
    const bool asked = !found.empty();
    for (std::string line; !asked && std::getline(report, line);) {
        if (line.rfind("flags\t", 0) == 0 || line.rfind("Features\t", 0) == 0) {
            found += " " + line.substr(std::min(line.find(':') + 1, line.size()));
        }
    }
    std::istringstream words(found);
    return { std::istream_iterator<std::string>(words), {} };
}

bool has_any(const Names& names, const Names& wanted)
{
    return std::any_of(wanted.begin(), wanted.end(), [&](const std::string& one) { return names.count(one) == 1; });
}

const Names dot_products = { "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm" };
const Names bf16_products = { "avx512_bf16", "amx_bf16" };

Processor processor_of(const Names& names)
{
    Processor found;
    found.dot_products = has_any(names, dot_products);
    found.bf16 = has_any(names, bf16_products);
    struct utsname system { };
    const bool x86 = ::uname(&system) == 0 && (std::string(system.machine) == "x86_64" || system.machine[0] == 'i');
    found.loses_sums = names.empty() ? x86 : !found.dot_products && has_any(names, { "ssse3", "avx2" });
    return found;
}

double number(const std::string& text)
{
    const bool digits = !text.empty() && text.size() < 16 && text.find_first_not_of("0123456789") == std::string::npos;
    return digits ? std::stod(text) : 0;
}

std::string first_word(std::istream& from)
{
    std::string word;
    from >> word;
    return word;
}

// How many cores' time a control group may use; infinite without a quota.
double quota_of(const fs::path& group)
{
    std::ifstream both(group / "cpu.max"), quota(group / "cpu.cfs_quota_us"), period(group / "cpu.cfs_period_us");
    double most = number(first_word(both)), every = number(first_word(both));
    if (!both.is_open()) {
        most = number(first_word(quota));
        every = number(first_word(period));
    }
    return most > 0 && every > 0 ? most / every : std::numeric_limits<double>::infinity();
}

// The tightest quota of the process's control group and all groups above it.
double tightest_quota()
{
    double tightest = std::numeric_limits<double>::infinity();
    const fs::path mounts = "/sys/fs/cgroup";
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':'), second = line.find(':', first == std::string::npos ? first : first + 1);
        if (second == std::string::npos || line.find("..") != std::string::npos) {
            continue;
        }
        const std::string of = "," + line.substr(first + 1, second - first - 1) + ",";
        if (of != ",," && of.find(",cpu,") == std::string::npos) {
            continue;
        }
        const fs::path mount = of == ",," ? (fs::is_directory(mounts / "unified") ? mounts / "unified" : mounts) : mounts / "cpu";
        for (fs::path group = fs::path(line.substr(second + 1)).relative_path();; group = group.parent_path()) {
            tightest = std::min(tightest, quota_of(mount / group));
            if (group.empty()) {
                break;
            }
        }
    }
    return tightest;
}

} // namespace

Processor processor()
{
    return processor_of(features());
}

Processor onednn_processor()
{
    std::string limit = variable("ONEDNN_MAX_CPU_ISA");
    std::transform(limit.begin(), limit.end(), limit.begin(), [](unsigned char one) { return std::tolower(one); });
    const std::map<std::string, Names> limits = { { "sse41", {} }, { "avx", {} }, { "avx2", {} }, { "avx512_core", {} },
        { "avx2_vnni", { "avx_vnni" } }, { "avx2_vnni_2", { "avx_vnni" } }, { "avx512_core_vnni", { "avx512_vnni" } },
        { "avx512_core_bf16", { "avx512_vnni", "avx512_bf16" } },
        { "avx512_core_fp16", { "avx512_vnni", "avx512_bf16", "avx_vnni" } } };
    Names names = features();
    if (const auto kept = limits.find(limit); kept != limits.end()) {
        for (const Names* const some : { &dot_products, &bf16_products }) {
            for (const std::string& name : *some) {
                if (kept->second.count(name) == 0) {
                    names.erase(name);
                }
            }
        }
    }
    return processor_of(names);
}

int usable_threads(int limit)
{
    cpu_set_t allowed;
    const int cores = ::sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    const double most = std::min<double>(limit > 0 ? std::min(limit, cores) : cores, std::ceil(tightest_quota()));
    return std::max(1, static_cast<int>(most));
}

} // namespace ztdeploy

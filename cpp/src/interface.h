// What an engine must take and give, and whether it does; as ztdeploy/target/runtime/interface.py holds it. An engine's
// hash says that it is the one in the manifest, and nothing about what is in it.
#pragma once

#include "bundle.h"
#include "engine.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ztdeploy {

// In all shapes here the batch comes first; -1: any.
struct Interface {
    std::string name; // in errors
    TensorFacts input, output;
    std::vector<TensorFacts> kept, into; // of its pruning layers, and of those that merge
    std::vector<Layer> layers;
    std::optional<TensorFacts> confidence; // of a cascade's stage: how sure it is of its output

    std::vector<const TensorFacts*> given() const;
};

Interface interface_of(const Manifest& manifest, const Variant& variant, const Graph& graph);

// An engine in memory that declares what it should.
class OpenPart {
public:
    // Throws Error.
    OpenPart(Interface interface, std::unique_ptr<OpenEngine> engine);

    // What a whole batch gave, of which so many images count.
    struct Raw {
        std::vector<Value> values;
        std::int64_t batch;
        std::size_t images;
    };
    // Run on the inputs of so many images, one after the other. A fixed batch is filled up with copies.
    Raw run(const std::uint8_t* inputs, std::size_t images) const;
    // An output's numbers for the images that count; refused if it is another one than promised.
    std::vector<float> numbers(const Raw& raw, const TensorFacts& wanted) const;
    // The outputs of a variant; values that no sound engine gives are refused.
    Outputs outputs(const Raw& raw) const;

    const Interface& interface() const { return interface_; }
    std::size_t input_bytes() const; // of one image

private:
    void check_declared() const;
    const Value& value_of(const Raw& raw, const TensorFacts& wanted) const;
    std::vector<std::int32_t> indices(const Raw& raw, const TensorFacts& wanted) const;

    Interface interface_;
    std::unique_ptr<OpenEngine> engine_;
};

// The rows of some of so many images.
template <class Number>
std::vector<Number> rows_of(const std::vector<Number>& all, std::size_t images, const std::vector<std::size_t>& places)
{
    const std::size_t each = all.size() / images;
    std::vector<Number> rows;
    for (const std::size_t place : places) {
        rows.insert(rows.end(), &all[place * each], &all[place * each] + each);
    }
    return rows;
}

// Put the outputs of further images behind those of the first ones.
void append(Outputs& all, const Outputs& more);
// The outputs of some of so many images.
Outputs some_of(const Outputs& all, std::size_t images, const std::vector<std::size_t>& places);

} // namespace ztdeploy

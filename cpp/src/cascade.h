// Running a cascade: its cheapest stage on every image, later ones where that is not confident; as
// ztdeploy/target/adaptive/cascade.py does it.
#pragma once

#include "interface.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ztdeploy {

// What some images of a call got from one variant.
struct Answered {
    Outputs outputs;
    std::vector<std::size_t> places; // which images of the call these are
    const Variant* variant;
    std::optional<int> stage; // of a cascade, counted from 0
};

// The open pieces of a bundle's cascade.
class Cascade {
public:
    using Opener = std::function<std::unique_ptr<OpenEngine>(const Part&)>;

    // Throws Error where there is none, or where a piece takes or gives something else than it should.
    Cascade(const Bundle& bundle, const Profile& profile, const Opener& open);

    // By stage that answered any of these images. The inputs are as graphs take them.
    std::vector<Answered> run(const std::uint8_t* inputs, std::size_t images);

    // How many images each stage has answered so far.
    const std::vector<std::size_t>& counts() const { return counts_; }
    std::vector<std::string> variants() const;
    // Says that images are less confident than the calibration images, if they are.
    const std::optional<std::string>& warning() const { return warning_; }

private:
    struct Sure {
        Outputs outputs;
        std::vector<float> confidence; // none of the last stage
    };
    std::vector<float> prefix(const std::uint8_t* inputs, std::size_t images) const;
    Sure tail(std::size_t stage, const std::vector<float>& tokens, std::size_t images) const;
    void look_at(const std::vector<float>& confidence);

    const CascadeSetting& setting_;
    std::vector<const Variant*> variants_;
    std::vector<OpenPart> parts_; // the prefix, then a tail for each stage
    std::size_t most_;            // images at a time
    std::vector<std::size_t> counts_;
    std::vector<float> seen_;
    double rounds_ = 1;
    std::optional<std::string> warning_;
};

} // namespace ztdeploy

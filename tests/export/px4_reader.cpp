// Loads an archive as PX4's mc_raptor does, with rl-tools' own reader, and replays the archive's example.
// Prints the mean absolute difference of the actions; the exit code is 0 where it is below 1e-5.
#include <rl_tools/operations/cpu.h>

#include <rl_tools/nn/layers/dense/operations_generic.h>
#include <rl_tools/nn/layers/gru/operations_generic.h>
#include <rl_tools/nn_models/sequential/operations_generic.h>
#include <rl_tools/persist/backends/tar/operations_cpu.h>
#include <rl_tools/persist/backends/tar/operations_generic.h>

#include <rl_tools/nn/optimizers/adam/instance/persist.h>

#include <rl_tools/nn/layers/dense/persist.h>
#include <rl_tools/nn/layers/gru/persist.h>
#include <rl_tools/nn_models/sequential/persist.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

namespace rlt = rl_tools;
using Device = rlt::devices::DefaultCPU;
using Index = Device::index_t;
using Types = rlt::numeric_types::Policy<float>;
namespace dense = rlt::nn::layers::dense;
namespace gru = rlt::nn::layers::gru;
namespace groups = rlt::nn::parameters::groups;
using Function = rlt::nn::activation_functions::ActivationFunction;

constexpr Index kSteps = 5, kVehicles = 2, kObservations = 22, kActions = 4;

using Initializer = dense::DefaultInitializer<Types, Index>;
using First = dense::BindConfiguration<
    dense::Configuration<Types, Index, 16, Function::RELU, Initializer, groups::Input>>;
using Second = gru::BindConfiguration<gru::Configuration<Types, Index, 16, groups::Normal>>;
using Third = dense::BindConfiguration<
    dense::Configuration<Types, Index, kActions, Function::IDENTITY, Initializer, groups::Output>>;
template <typename Layer, typename Next = rlt::nn_models::sequential::OutputModule>
using Module = rlt::nn_models::sequential::Module<Layer, Next>;
using Policy = rlt::nn_models::sequential::Build<rlt::nn::capability::Forward<true>,
                                                 Module<First, Module<Second, Module<Third>>>,
                                                 rlt::tensor::Shape<Index, kSteps, kVehicles, kObservations>>;
template <typename Shape>
using Tensor = rlt::Tensor<rlt::tensor::Specification<float, Index, Shape>>;
using Root = rlt::persist::backends::tar::ReaderGroup<rlt::persist::backends::tar::ReaderGroupSpecification<Index>>;

template <typename Target>
void read(Device &device, std::vector<char> &archive, const char *name, Target &target, Index count) {
    Index size = 0;
    rlt::persist::backends::tar::get(device, archive.data(), archive.size(), name,
                                     reinterpret_cast<char *>(target._data), sizeof(float) * count, size);
}

int main(int, char **argv) {
    std::ifstream file(argv[1], std::ios::binary);
    std::vector<char> archive((std::istreambuf_iterator<char>(file)), {});
    Device device;
    Device::SPEC::RANDOM::ENGINE<> rng;
    Policy policy;
    Policy::Buffer<true> buffer;
    Tensor<Policy::INPUT_SHAPE> given;
    Tensor<Policy::OUTPUT_SHAPE> actions, expected;
    rlt::malloc(device);
    rlt::malloc(device, rng);
    rlt::malloc(device, policy);
    rlt::malloc(device, buffer);
    rlt::malloc(device, given);
    rlt::malloc(device, actions);
    rlt::malloc(device, expected);
    rlt::init(device);
    rlt::init(device, rng, 0);

    Root root;
    root.data = archive.data();
    root.size = archive.size();
    auto actor = rlt::get_group(device, root, "actor");
    rlt::load(device, policy, actor);
    read(device, archive, "example/input/data", given, kSteps * kVehicles * kObservations);
    read(device, archive, "example/output/data", expected, kSteps * kVehicles * kActions);

    rlt::Mode<rlt::mode::Evaluation<>> mode;
    rlt::evaluate(device, policy, given, actions, buffer, rng, mode);
    const float difference = rlt::abs_diff(device, expected, actions) / (kSteps * kVehicles * kActions);
    std::cout << "difference " << difference << std::endl;
    return difference < 1e-5f ? 0 : 2;
}

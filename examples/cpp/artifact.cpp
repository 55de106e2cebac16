#include "artifact.h"

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <stdexcept>

void Artifact::set_description(const std::string& text) {
  if (text.empty()) throw std::runtime_error("expected a file that combicam exported");
  description_ = Json::parse(text);
  // A higher number means that the meaning of something changed; new keys alone do not raise it.
  const int format = int(description_["format"].number());
  if (format < 2 || format > 3) {
    throw std::runtime_error("expected an artifact of format 2 or 3, got " + std::to_string(format));
  }
}

namespace {

class TorchArtifact : public Artifact {
 public:
  std::map<std::string, Array> run(const std::vector<int64_t>& shape, std::vector<float> images,
                                   std::vector<int64_t> targets) override {
    const torch::InferenceMode no_gradients;
    std::vector<at::Tensor> inputs{torch::from_blob(images.data(), shape).to(device_)};
    if (!targets.empty()) {
      const int64_t columns = int64_t(targets.size()) / shape[0];
      inputs.push_back(torch::from_blob(targets.data(), {shape[0], columns}, torch::kInt64).to(device_));
    }
    const std::vector<at::Tensor> outputs = call(inputs);
    std::map<std::string, Array> named;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const at::Tensor flat = outputs[i].to(torch::kCPU, torch::kFloat).contiguous();
      const float* values = flat.data_ptr<float>();
      named[description_["outputs"][i].string()] = {outputs[i].sizes().vec(), {values, values + flat.numel()}};
    }
    return named;
  }

 protected:
  virtual std::vector<at::Tensor> call(const std::vector<at::Tensor>& inputs) = 0;

  at::Device device_ = torch::kCPU;
};

class TorchScript : public TorchArtifact {
 public:
  explicit TorchScript(const std::string& path) {
    torch::jit::ExtraFilesMap extra{{"combicam.json", ""}};
    module_ = torch::jit::load(path, device_, extra);
    module_.eval();
    set_description(extra["combicam.json"]);
  }

 private:
  std::vector<at::Tensor> call(const std::vector<at::Tensor>& inputs) override {
    return module_.forward({inputs.begin(), inputs.end()}).toTensorVector();
  }

  torch::jit::Module module_;
};

class AotInductor : public TorchArtifact {
 public:
  explicit AotInductor(const std::string& path) : loader_(path) {
    auto metadata = loader_.get_metadata();
    set_description(metadata["combicam"]);
    device_ = at::Device(metadata["AOTI_DEVICE_KEY"]);  // the only one that the code is for
  }

 private:
  std::vector<at::Tensor> call(const std::vector<at::Tensor>& inputs) override { return loader_.run(inputs); }

  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

std::unique_ptr<Artifact> open_artifact(const std::string& path) {
  if (ends_with(path, ".ts")) return std::make_unique<TorchScript>(path);
  if (ends_with(path, ".pt2")) return std::make_unique<AotInductor>(path);
  throw std::runtime_error("expected a .ts or .pt2 file, got " + path);
}

#include "remote/service.h"

#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <cstdio>

#include "coordinator/names.h"
#include "remote/control_socket.h"
#include "remote/public_url.h"
#include "remote/server.h"
#include "remote/service_json.h"
#include "remote/sqlite_store.h"
#include "remote/state_dir.h"
#include "remote/tls.h"
#include "support/support.h"

namespace porthole::remote {

namespace asio = boost::asio;

namespace {

class StderrLog final : public Log {
 public:
  void write(LogLevel level, std::string_view component, std::string_view message) override {
    if (level < LogLevel::kWarning) return;
    std::fprintf(stderr, "%.*s: %.*s\n", static_cast<int>(component.size()), component.data(),
                 static_cast<int>(message.size()), message.data());
  }
};

// Each node holds two connections; the usual soft limit of 1,024 would be a household's street.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

template <typename T>
T must(Result<T> result) {
  if (!result) throw app::CommandError(result.error().message);
  return std::move(result).value();
}

void check_base_domain(const std::string& domain) {
  std::size_t at = 0;
  while (at <= domain.size()) {
    std::size_t end = std::min(domain.find('.', at), domain.size());
    std::string label = domain.substr(at, end - at);
    if (label.empty() || coordinator::dns_label(label) != label)
      throw app::CommandError("--base-domain " + domain + " is not a domain name in lower case", 2);
    at = end + 1;
  }
  if (domain.size() > 128) throw app::CommandError("--base-domain is longer than 128 characters", 2);
}

}  // namespace

struct RemoteService::Impl {
  explicit Impl(const ServiceOptions& o) : state(o.state_dir), stop(io) {
    check_base_domain(o.base_domain);
    if (o.tls_certificate.empty() != o.tls_key.empty())
      throw app::CommandError("--tls-cert and --tls-key belong together", 2);
    raise_descriptor_limit();
    relay_key = state.relay_key();
    ServerOptions server_options;
    server_options.listen = o.listen;
    server_options.stun_port = o.stun_port;
    if (!o.tls_certificate.empty()) {
      tls.emplace(make_tls(o.tls_certificate, o.tls_key, relay_key.public_key()));
      server_options.tls = &*tls;
    }
    server.emplace(io, server_options);
    url = o.public_url.empty() ? PublicUrl::from_listen(server->listen_endpoint(), tls.has_value())
                               : PublicUrl::parse(o.public_url);
    store = must(SqliteStore::open(state.store_path()));
    coordinator::DirectoryConfig config;
    config.base_domain = o.base_domain;
    config.public_url = url.text();
    config.server_secret = state.server_secret();
    directory = must(coordinator::Directory::open(std::move(config), *store, rng, log));
    machine.emplace(state.noise_key(), own_relay_map(url, server->stun_port()), *directory, rng, log);
    machine->start(read_clock());
    api.emplace(*directory, state.admin_token(), url.text());
    control.emplace(io, state.socket_path(), [this](const boost::json::object& command) {
      auto answer = run_command(*directory, read_clock(), command);
      // What it changed goes out before the next thing happens, not before the answer.
      asio::post(io, [this] { server->settle(); });
      return answer;
    });
  }

  SystemRng rng;
  StderrLog log;
  StateDir state;
  asio::io_context io{1};
  asio::posix::stream_descriptor stop;
  crypto::NodePrivate relay_key;
  std::optional<asio::ssl::context> tls;
  std::optional<Server> server;
  PublicUrl url;
  std::unique_ptr<SqliteStore> store;
  std::unique_ptr<coordinator::Directory> directory;
  std::optional<coordinator::Coordinator> machine;
  std::optional<EnrolmentApi> api;
  std::optional<ControlSocket> control;
};

RemoteService::RemoteService(const ServiceOptions& options) : impl_(std::make_unique<Impl>(options)) {}

RemoteService::~RemoteService() {
  if (!impl_) return;
  // Handlers that never ran hold connections; they must go while the machines still stand.
  impl_->control.reset();
}

std::string RemoteService::url() const { return impl_->url.text(); }
std::string RemoteService::admin_token_file() const { return impl_->state.admin_token_path(); }
Endpoint RemoteService::listen() const { return impl_->server->listen_endpoint(); }
std::uint16_t RemoteService::stun_port() const { return impl_->server->stun_port(); }

void RemoteService::run(int stop_fd) {
  Impl& i = *impl_;
  i.server->start(*i.machine, *i.directory, *i.api, i.relay_key);
  i.stop.assign(::dup(stop_fd));
  i.stop.async_wait(asio::posix::stream_descriptor::wait_read, [&i](boost::system::error_code) {
    i.control->close();
    i.server->stop([&i] { i.io.stop(); });
  });
  i.io.run();
  if (auto saved = i.machine->save(); !saved) throw app::CommandError(saved.error().message);
}

}  // namespace porthole::remote

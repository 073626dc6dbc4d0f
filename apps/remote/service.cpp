#include "remote/service.h"

#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <cstdio>

#include "coordinator/names.h"
#include "remote/control_socket.h"
#include "remote/headscale_service.h"
#include "remote/public_url.h"
#include "remote/server.h"
#include "remote/service_json.h"
#include "remote/sqlite_store.h"
#include "remote/state_dir.h"
#include "remote/tls.h"
#include "remote/worker.h"
#include "support/support.h"

namespace porthole::remote {

namespace asio = boost::asio;

namespace {

class StderrLog final : public Log {
 public:
  void write(LogLevel level, std::string_view component, std::string_view message) override {
    if (level < LogLevel::kWarning) return;
    app::print_log(std::string(component) + ": " + std::string(message));
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

// Both engines have the state directory, the listener and the doors in common; what stands behind the doors differs.
struct RemoteService::Impl {
  explicit Impl(const ServiceOptions& o) : state(o.state_dir), stop(io), watch_timer(io) {
    check_base_domain(o.base_domain);
    if (o.tls_certificate.empty() != o.tls_key.empty())
      throw app::CommandError("--tls-cert and --tls-key belong together", 2);
    if (o.headscale) headscale_api.emplace(o.headscale->url, o.headscale->api_key_file, o.headscale->ca_file);
    state.claim_engine(o.headscale.has_value());
    raise_descriptor_limit();
    relay_key = state.relay_key();
    ServerOptions server_options;
    server_options.listen = o.listen;
    server_options.stun_port = o.stun_port;
    if (o.headscale) server_options.stun_port.reset();
    if (!o.tls_certificate.empty()) {
      tls.emplace(make_tls(o.tls_certificate, o.tls_key, relay_key.public_key()));
      server_options.tls = &*tls;
    }
    server.emplace(io, server_options);
    url = o.public_url.empty() ? PublicUrl::from_listen(server->listen_endpoint(), tls.has_value())
                               : PublicUrl::parse(o.public_url);
    coordination_url = url.text();
    state.check_store();
    store = must(SqliteStore::open(state.store_path()));
    if (o.headscale) open_headscale(o);
    else open_embedded(o);
    api.emplace(*service, state.admin_token(), coordination_url);
    control.emplace(io, state.socket_path(), [this](const boost::json::object& command, std::function<void(boost::json::object)> done) {
      if (!worker) {
        done(run_command(*service, read_clock(), command));
        // What it changed goes out before the next thing happens, not before the answer.
        asio::post(io, [this] { server->settle(); });
        return;
      }
      bool taken = worker->post([this, command, done] {
        asio::post(io, [answer = run_command(*service, read_clock(), command), done] { done(answer); });
      });
      if (!taken) done({{"ok", false}, {"error", kBusy}, {"code", to_string(ErrorCode::kUnavailable)}});
    });
  }

  void open_embedded(const ServiceOptions& o) {
    coordinator::DirectoryConfig config;
    config.base_domain = o.base_domain;
    config.public_url = url.text();
    config.server_secret = state.server_secret(store->has_accounts());
    directory = must(coordinator::Directory::open(std::move(config), *store, rng, log));
    machine.emplace(state.noise_key(store->has_nodes()), own_relay_map(url, server->stun_port()), *directory, rng, log);
    machine->start(read_clock());
    service = &*directory;
  }

  void open_headscale(const ServiceOptions& o) {
    if (!o.headscale->public_url.empty())
      coordination_url = PublicUrl::parse(o.headscale->public_url, "--headscale-public-url").text();
    else coordination_url = headscale_api->url();
    HeadscaleService::Config config{*store, rng, log, state.server_secret(store->has_accounts()), {o.headscale->expiry_grace}, {}, {}, o.on_proof};
    config.pause = [this](std::chrono::milliseconds time) { worker->pause(time); };
    config.proof.login_url = coordination_url;
    config.proof.ca_file = o.headscale->ca_file;
    config.proof.scratch = state.file("proof");
    config.proof.settle = o.headscale->proof_settle;
    config.proof.stopped = [this, stopped = o.stopped] { return worker ? worker->stopping() : stopped && stopped(); };
    headscale = must(HeadscaleService::open(read_clock(), *headscale_api, std::move(config)));
    service = &*headscale;
    worker.emplace();
  }

  void ask(const ApiRequest& request, std::function<void(ApiAnswer)> done) {
    if (!worker) return done(api->handle(read_clock(), request));
    struct Kept {
      std::string method, target, authorization, body;
      IpAddress remote;
    };
    auto kept = std::make_shared<Kept>(Kept{std::string(request.method), std::string(request.target),
                                            std::string(request.authorization), std::string(request.body), request.remote});
    bool taken = worker->post([this, kept, done] {
      ApiAnswer answer = api->handle(read_clock(), {kept->method, kept->target, kept->authorization, kept->body, kept->remote});
      asio::post(io, [answer = std::move(answer), done] { done(answer); });
    });
    if (!taken) done(problem(503, kBusy));
  }

  void watch() {
    watch_timer.expires_after(kHeadscaleWatch);
    watch_timer.async_wait([this](boost::system::error_code e) {
      if (e) return;
      // The next look begins when this one has ended.
      if (!worker->post([this] {
            headscale->watch(read_clock());
            asio::post(io, [this] { watch(); });
          }))
        watch();
    });
  }

  static constexpr const char* kBusy = "too much is waiting for Headscale; try again later";

  SystemRng rng;
  StderrLog log;
  StateDir state;
  asio::io_context io{1};
  asio::posix::stream_descriptor stop;
  asio::steady_timer watch_timer;
  crypto::NodePrivate relay_key;
  std::optional<asio::ssl::context> tls;
  std::optional<Server> server;
  PublicUrl url;
  std::string coordination_url;
  std::unique_ptr<SqliteStore> store;
  coordinator::Service* service = nullptr;
  // The embedded engine.
  std::unique_ptr<coordinator::Directory> directory;
  std::optional<coordinator::Coordinator> machine;
  // Headscale. Its calls block, so service and API belong to the worker's thread.
  std::optional<HeadscaleApi> headscale_api;
  std::unique_ptr<HeadscaleService> headscale;
  std::optional<EnrolmentApi> api;
  std::optional<ControlSocket> control;
  std::optional<Worker> worker;  // goes first
};

RemoteService::RemoteService(const ServiceOptions& options) : impl_(std::make_unique<Impl>(options)) {}

RemoteService::~RemoteService() {
  if (!impl_) return;
  if (impl_->worker) impl_->worker->stop();
  // Handlers that never ran hold connections; they must go while the machines still stand.
  impl_->control.reset();
}

std::string RemoteService::url() const { return impl_->url.text(); }
std::string RemoteService::coordination_url() const { return impl_->coordination_url; }
std::string RemoteService::admin_token_file() const { return impl_->state.admin_token_path(); }
Endpoint RemoteService::listen() const { return impl_->server->listen_endpoint(); }
std::uint16_t RemoteService::stun_port() const { return impl_->server->stun_port(); }

void RemoteService::run(int stop_fd) {
  Impl& i = *impl_;
  std::optional<Coordination> coordination;
  if (i.machine) coordination.emplace(Coordination{*i.machine, *i.directory, i.relay_key});
  i.server->start(coordination, [&i](const ApiRequest& request, std::function<void(ApiAnswer)> done) { i.ask(request, std::move(done)); });
  if (i.worker) i.watch();
  i.stop.assign(::dup(stop_fd));
  i.stop.async_wait(asio::posix::stream_descriptor::wait_read, [&i](boost::system::error_code) {
    if (i.worker) i.worker->begin_stop();
    i.watch_timer.cancel();
    i.control->close();
    i.server->stop([&i] { i.io.stop(); });
  });
  i.io.run();
  if (i.worker) i.worker->stop();
  if (i.machine)
    if (auto saved = i.machine->save(); !saved) throw app::CommandError(saved.error().message);
}

}  // namespace porthole::remote

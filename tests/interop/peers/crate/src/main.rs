//! A node made of the tailscale crate, for the interop tests: says what happens as JSON lines, exposes a local TCP port on
//! its tailnet addresses and offers ports of the tailnet on loopback. Runs until it is ended.
//!
//!   cratepeer DIR CONTROL_URL HOSTNAME KEY_FILE EXPOSED_PORT [ADDRESS:PORT of the tailnet]...
use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use tailscale::netstack;
use tailscale::{AuthState, Config, Device};
use tokio::io::{AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};

fn emit(started: Instant, mut event: Value) {
    event["ms"] = json!(started.elapsed().as_millis() as u64);
    println!("{event}");
}

/// Copies both ways. The crate cannot end one half of a stream (its shutdown does nothing), so the tailnet's stream ends
/// as a whole when the local one has.
async fn splice(tailnet: netstack::TcpStream, mut local: TcpStream) {
    let (mut from_tailnet, mut to_tailnet) = split(tailnet);
    let (mut from_local, mut to_local) = local.split();
    tokio::select! {
        _ = copy(&mut from_local, &mut to_tailnet) => {}
        () = async {
            let _ = copy(&mut from_tailnet, &mut to_local).await;
            let _ = to_local.shutdown().await;
            std::future::pending().await
        } => {}
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, control, hostname, key_file, port, forwards @ ..] = args.as_slice() else {
        return Err(
            "usage: cratepeer DIR CONTROL_URL HOSTNAME KEY_FILE EXPOSED_PORT [ADDRESS:PORT]..."
                .into(),
        );
    };
    let port: u16 = port.parse()?;
    let mut config = Config::default_with_key_file(format!("{dir}/keys.json")).await?;
    config.control_server_url = control.parse()?;
    config.requested_hostname = Some(hostname.clone());
    let key = std::fs::read_to_string(key_file)?.trim().to_string();
    let device: &'static Device = Box::leak(Box::new(Device::new(&config, Some(key)).await?));
    if let AuthState::NotAuthorized(url) = device.is_authorized().await? {
        return Err(format!("not authorised: {url}").into());
    }
    let (v4, v6) = (device.ipv4_addr().await?, device.ipv6_addr().await?);

    for address in [SocketAddr::from((v4, port)), SocketAddr::from((v6, port))] {
        let listener = device.tcp_listen(address).await?;
        tokio::spawn(async move {
            while let Ok(remote) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(local) = TcpStream::connect(("127.0.0.1", port)).await {
                        splice(remote, local).await;
                    }
                });
            }
        });
    }
    for to in forwards {
        let address: SocketAddr = to.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        emit(
            started,
            json!({"event": "forward", "to": to, "address": listener.local_addr()?.to_string()}),
        );
        tokio::spawn(async move {
            while let Ok((local, _)) = listener.accept().await {
                tokio::spawn(async move {
                    match device.tcp_connect(address).await {
                        Ok(remote) => splice(remote, local).await,
                        Err(e) => emit(
                            started,
                            json!({"event": "notice", "message": e.to_string()}),
                        ),
                    }
                });
            }
        });
    }
    let name = device.self_node().await?.fqdn(false);
    emit(
        started,
        json!({"event": "running", "ips": [v4.to_string(), v6.to_string()], "dns_name": name}),
    );
    std::future::pending::<()>().await;
    Ok(())
}

//! A proxy in front of Redis that fails like a network.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Proxy {
    port: u16,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// How often the connections that were open then were made to pass nothing on.
    swallows: AtomicU32,
    /// Where new connections go.
    server: AtomicU16,
    /// In milliseconds.
    delay: AtomicU64,
    reset_next: AtomicBool,
    garble_next: AtomicBool,
    /// In milliseconds, or 0.
    hold_next: AtomicU64,
    /// What was held and the server has answered.
    late: AtomicU32,
    resets: AtomicU32,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::<Faults>::default();
        faults.server.store(server, Ordering::SeqCst);
        let proxy = Self {
            port,
            faults: faults.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let faults = faults.clone();
                tokio::spawn(async move {
                    let server = faults.server.load(Ordering::SeqCst);
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                        faults.pass(client, server).await;
                    }
                });
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The connections that are open now take everything and pass nothing on; new ones do.
    pub(crate) fn swallow(&self) {
        self.faults.swallows.fetch_add(1, Ordering::SeqCst);
    }

    /// New connections go to another server; those that are open stay.
    pub(crate) fn point_to(&self, server: u16) {
        self.faults.server.store(server, Ordering::SeqCst);
    }

    /// Whatever comes is passed on later.
    pub(crate) fn delay(&self, by: Duration) {
        let millis = by.as_millis() as u64;
        self.faults.delay.store(millis, Ordering::SeqCst);
    }

    /// Of the next reply one byte is passed on, and then the connection is reset.
    pub(crate) fn reset_next(&self) {
        self.faults.reset_next.store(true, Ordering::SeqCst);
    }

    /// The next reply is no reply.
    pub(crate) fn garble_next(&self) {
        self.faults.garble_next.store(true, Ordering::SeqCst);
    }

    /// What is sent next is passed on later, and its sender reset at once.
    pub(crate) fn hold_next(&self, by: Duration) {
        let millis = by.as_millis() as u64;
        self.faults.hold_next.store(millis, Ordering::SeqCst);
    }

    /// How often the server has answered what was held.
    pub(crate) fn late(&self) -> u32 {
        self.faults.late.load(Ordering::SeqCst)
    }

    pub(crate) fn resets(&self) -> u32 {
        self.faults.resets.load(Ordering::SeqCst)
    }
}

impl Faults {
    async fn pass(&self, mut client: TcpStream, mut server: TcpStream) {
        let opened = self.swallows.load(Ordering::SeqCst);
        let (mut commands, mut replies) = ([0; 4096], [0; 4096]);
        loop {
            let (to, bytes) = tokio::select! {
                read = client.read(&mut commands) => match read {
                    Ok(read @ 1..) if self.hold_next.load(Ordering::SeqCst) > 0 => {
                        let held = self.hold_next.swap(0, Ordering::SeqCst);
                        let _ = client.set_zero_linger();
                        drop(client);
                        tokio::time::sleep(Duration::from_millis(held)).await;
                        let _ = server.write_all(&commands[..read]).await;
                        let _ = server.read(&mut replies).await;
                        self.late.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    Ok(read @ 1..) => (&mut server, &commands[..read]),
                    _ => return,
                },
                read = server.read(&mut replies) => match read {
                    Ok(read @ 1..) if self.reset_next.swap(false, Ordering::SeqCst) => {
                        self.resets.fetch_add(1, Ordering::SeqCst);
                        let _ = client.write_all(&replies[..read.min(1)]).await;
                        let _ = client.set_zero_linger();
                        return;
                    }
                    Ok(read @ 1..) => {
                        if self.garble_next.swap(false, Ordering::SeqCst) {
                            replies[0] = b'?';
                        }
                        (&mut client, &replies[..read])
                    }
                    _ => return,
                },
            };
            let delay = self.delay.load(Ordering::SeqCst);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            let swallows = self.swallows.load(Ordering::SeqCst) > opened;
            if !swallows && to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }
}

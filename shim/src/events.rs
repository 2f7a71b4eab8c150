//! Events to containerd: one bounded queue, in order, sent by one task that goes on where it was when containerd comes back.

use containerd_shim_protos::{
    api::ForwardRequest,
    shim::event::Envelope,
    shim_async::{Client, EventsClient},
    topics,
};
use protobuf::{
    Message, MessageField,
    well_known_types::{any::Any, timestamp::Timestamp},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{sync::Notify, time::timeout};

/// Most events that wait, as in containerd's own shims. containerd may be away for days.
const CAPACITY: usize = 2048;
/// How long containerd may take for one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long before a lost containerd is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// An event of a task, with its topic and its type as containerd's registry has it.
pub trait Event: Message {
    /// Where it is published.
    const TOPIC: &'static str;
    /// Full name of the message.
    const TYPE: &'static str;
}

macro_rules! topics {
    ($($event:ident: $topic:ident),*) => {$(
        impl Event for containerd_shim_protos::events::task::$event {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($event));
        }
    )*};
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Envelope>,
    lost: u64,
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    namespace: Arc<str>,
    /// Empty from CRI-O, which wants none.
    address: Arc<str>,
    queue: Arc<Mutex<Queue>>,
    changed: Arc<Notify>,
}

impl Events {
    /// A queue for the events service at `address` (a path, or `unix://` and a path; empty for none).
    pub fn new(namespace: &str, address: &str) -> Self {
        Self { namespace: namespace.into(), address: address.into(), queue: Arc::default(), changed: Arc::default() }
    }

    /// Queues an event. Never waits, so that it can be called at the moment of the change that it reports, under that change's lock.
    pub fn publish<E: Event>(&self, event: &E) {
        if self.address.is_empty() {
            return;
        }
        let any = Any { type_url: E::TYPE.to_owned(), value: event.write_to_bytes().unwrap_or_default(), ..Default::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::from(SystemTime::now())),
            namespace: self.namespace.to_string(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(any),
            ..Default::default()
        };
        {
            let mut queue = self.lock();
            if queue.waiting.len() < CAPACITY {
                queue.waiting.push_back(envelope);
            } else {
                queue.lost += 1;
                log::warn!(lost = queue.lost; "event queue full: {} dropped", E::TOPIC);
            }
        }
        self.changed.notify_waiters();
    }

    /// Sends what is queued, for ever.
    pub async fn run(self) {
        let (mut client, mut wait) = (None, RETRY.0);
        loop {
            let envelope = self.next().await;
            match self.forward(&mut client, envelope).await {
                Ok(()) => {
                    wait = RETRY.0;
                    self.lock().waiting.pop_front();
                    self.changed.notify_waiters();
                }
                Err(error) => {
                    // The event stays at the head: order matters more than speed.
                    log::debug!("events: {error}");
                    client = None;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Waits until all is sent, at most so long.
    pub async fn drained(&self, limit: Duration) {
        let empty = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.lock().waiting.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if timeout(limit, empty).await.is_err() {
            log::warn!(waiting = self.lock().waiting.len(); "events were not taken");
        }
    }

    async fn next(&self) -> Envelope {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(envelope) = self.lock().waiting.front() {
                return envelope.clone();
            }
            changed.await;
        }
    }

    /// Sends one. `Err` means that it was not taken and may be sent again.
    async fn forward(&self, client: &mut Option<EventsClient>, envelope: Envelope) -> Result<(), ttrpc::Error> {
        let connected = match client {
            Some(connected) => connected,
            None => client.insert(EventsClient::new(Client::connect(&socket_address(&self.address)).await?)),
        };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        match connected.forward(ttrpc::context::with_duration(FORWARD_TIMEOUT), &request).await {
            Ok(_) => Ok(()),
            // An event that containerd has seen and refused would be refused for ever, and hold up all others.
            Err(ttrpc::Error::RpcStatus(status)) if !is_passing(status.code()) => {
                log::warn!(topic; "event refused: {}", status.message);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the same event may be taken later.
fn is_passing(code: ttrpc::Code) -> bool {
    use ttrpc::Code;
    matches!(code, Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED | Code::RESOURCE_EXHAUSTED)
}

/// The address as ttrpc wants it: containerd up to 2.2 gives a bare path.
fn socket_address(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("unix://{address}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use containerd_shim_protos::{
        events::task::{TaskExit, TaskStart},
        shim_async::{Events as Service, create_events},
    };
    use protobuf::well_known_types::empty::Empty;
    use std::path::Path;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    #[derive(Default)]
    struct Daemon {
        seen: Mutex<Vec<(String, String)>>,
        containers: Mutex<Vec<String>>,
        refusals: Mutex<Vec<ttrpc::Code>>,
    }

    #[async_trait]
    impl Service for Daemon {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            if let Some(code) = self.refusals.lock().unwrap().pop() {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no")));
            }
            let start = TaskStart::parse_from_bytes(&request.envelope.event.value).unwrap_or_default();
            self.containers.lock().unwrap().push(start.container_id);
            self.seen.lock().unwrap().push((request.envelope.topic.clone(), request.envelope.event.type_url.clone()));
            Ok(Empty::new())
        }
    }

    async fn serve(daemon: &Arc<Daemon>, path: &Path) -> Server {
        let _ = std::fs::remove_file(path);
        let mut server = Server::new().bind(&format!("unix://{}", path.display())).unwrap();
        server = server.register_service(create_events(daemon.clone()));
        server.start().await.unwrap();
        server
    }

    #[tokio::test]
    async fn order_holds_while_the_daemon_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e");
        let events = Events::new("default", path.to_str().unwrap());
        tokio::spawn(events.clone().run());
        events.publish(&TaskStart::new());
        events.publish(&TaskExit::new());
        let daemon = Arc::new(Daemon::default());
        daemon.refusals.lock().unwrap().extend([ttrpc::Code::UNAVAILABLE, ttrpc::Code::UNAVAILABLE]);
        let _server = serve(&daemon, &path).await;
        events.drained(Duration::from_secs(20)).await;
        let topics: Vec<String> = daemon.seen.lock().unwrap().iter().map(|(topic, _)| topic.clone()).collect();
        assert_eq!(topics, ["/tasks/start", "/tasks/exit"]);
        assert_eq!(daemon.seen.lock().unwrap()[0].1, "containerd.events.TaskStart");
    }

    /// Each event once and in its place, though the daemon goes in the middle and comes back as another process.
    #[tokio::test]
    async fn order_holds_across_a_restart_of_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e");
        let events = Events::new("default", path.to_str().unwrap());
        tokio::spawn(events.clone().run());
        let daemon = Arc::new(Daemon::default());
        let mut published = Vec::new();
        for round in 0..3 {
            let mut server = serve(&daemon, &path).await;
            for n in 0..5 {
                let container_id = format!("{round}-{n}");
                events.publish(&TaskStart { container_id: container_id.clone(), ..Default::default() });
                published.push(container_id);
            }
            events.drained(Duration::from_secs(20)).await;
            server.shutdown().await.unwrap();
            let container_id = format!("{round}-away");
            events.publish(&TaskStart { container_id: container_id.clone(), ..Default::default() });
            published.push(container_id);
        }
        let _server = serve(&daemon, &path).await;
        events.drained(Duration::from_secs(20)).await;
        let seen: Vec<String> = daemon.containers.lock().unwrap().clone();
        assert_eq!(seen, published);
    }

    #[tokio::test]
    async fn a_refused_event_does_not_hold_up_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e");
        let daemon = Arc::new(Daemon::default());
        daemon.refusals.lock().unwrap().push(ttrpc::Code::INVALID_ARGUMENT);
        let _server = serve(&daemon, &path).await;
        let events = Events::new("default", &format!("unix://{}", path.display()));
        tokio::spawn(events.clone().run());
        events.publish(&TaskStart::new());
        events.publish(&TaskExit::new());
        events.drained(Duration::from_secs(20)).await;
        assert_eq!(daemon.seen.lock().unwrap().iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(), ["/tasks/exit"]);
    }

    #[tokio::test]
    async fn without_an_address_nothing_waits() {
        let events = Events::new("default", "");
        events.publish(&TaskExit::new());
        events.drained(Duration::from_secs(60)).await;
        assert!(events.lock().waiting.is_empty());
    }

    #[test]
    fn the_queue_is_bounded() {
        let events = Events::new("default", "/nowhere");
        (0..CAPACITY + 5).for_each(|_| events.publish(&TaskExit::new()));
        let queue = events.lock();
        assert_eq!((queue.waiting.len(), queue.lost), (CAPACITY, 5));
    }
}

//! What a person changes about a producer at one taker holds at the other, and at the first one when it comes back: nobody
//! waits for a producer that was retired, and nobody believes again what was set back.

use springhouse_featurestore::catalog::Signature;
use springhouse_featurestore::push::{EventSink, ProducerChange, ProducerState, PushHeader};

use super::oracle::seen_batch;
use super::world::World;
use crate::project::at;
use crate::push::batch;

/// The producer that is changed. It says nothing but how far it is, and only here.
const PRODUCER: &str = "gone";

/// How far behind it is, in seconds, and how far it is set back.
const BEHIND: i64 = 100;
const BACK: i64 = 50;

impl World {
    /// A producer says how far it is, is retired or set back, and the takers change; in the end it is retired.
    pub async fn change_producers(&mut self) {
        let source = if self.chance(2) { "seen" } else { "paid" };
        let said = self.at() - BEHIND;
        let change = if self.chance(2) { ProducerChange::Retire } else { ProducerChange::Watermark(at(said - BACK)) };
        self.say(format!("{PRODUCER} of {source} says that it has sent everything up to {said}"));
        let nothing = if source == "seen" { seen_batch(&[]) } else { batch(&[]) };
        let header = PushHeader { producer: Some(PRODUCER.to_owned()), sequence: None, watermark: Some(at(said)) };
        self.server().pushes.push(source, nothing, header).await.expect("a heartbeat");
        let told = &mut self.told[usize::from(source == "seen")];
        *told = said.max(*told);
        // At the taker that heard it, or at one that only learned of it.
        let learned = self.chance(2);
        if learned {
            self.change_takers().await;
        }
        self.change_producer(source, &change).await;
        for _ in 0..2 {
            self.is_changed(source, &change).await;
            self.change_takers().await;
        }
        self.is_changed(source, &change).await;
        if change != ProducerChange::Retire {
            self.change_producer(source, &ProducerChange::Retire).await;
            self.is_changed(source, &ProducerChange::Retire).await;
        }
    }

    /// What was pushed is flushed, and the other taker begins.
    async fn change_takers(&mut self) {
        self.flush().await;
        self.fail_over(1 - self.owner).await;
        self.follow().await;
        self.check();
    }

    async fn change_producer(&mut self, source: &str, change: &ProducerChange) {
        self.moves_on(1);
        self.say(format!("{PRODUCER} of {source} is changed: {change:?}"));
        let by = Signature { at: at(self.at()), who: "op".to_owned(), why: String::new() };
        let changed = self.server().pushes.change_producer(source, PRODUCER, change.clone(), by).await;
        changed.expect("it is known");
        self.flush().await;
        self.check();
    }

    async fn is_changed(&self, source: &str, change: &ProducerChange) {
        let known = self.server().pushes.producers(source).await.expect("defined");
        let known = known.into_iter().find(|known| known.producer == PRODUCER).expect("known");
        let ProducerState { watermark, retired, .. } = &known;
        let holds = match change {
            ProducerChange::Watermark(back) => *watermark == Some(*back),
            _ => watermark.is_none() && retired.is_some(),
        };
        assert!(holds, "taker {} does not know that {change:?}: {known:?}", self.owner);
        let stored = self.project.jobs().pushed().state().await.expect("readable");
        let corrected = stored.producers[source][PRODUCER].corrected.last();
        assert_eq!(corrected, known.corrected.as_ref(), "the store knows of another change than taker {}", self.owner);
    }
}

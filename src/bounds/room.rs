//! A room for tasks that may wait, but not many at a time: where one more comes, the oldest is ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// Tasks that wait for a stranger. A stranger that means well says soon what it wants, so the oldest is the one to end.
#[derive(Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    most: usize,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    waiting: BTreeMap<u64, AbortHandle>,
}

/// A place in the room; given back when it is dropped.
pub struct Place {
    room: Room,
    number: u64,
}

impl Room {
    /// A room for at most `most` tasks.
    #[must_use]
    pub fn new(most: usize) -> Room {
        Room(Arc::new(Inner { most, tasks: Mutex::default() }))
    }

    /// Starts a task that gets a place. It keeps it until it drops it; only as long can it be ended for a later one.
    pub fn enter<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Place) -> F) {
        let mut tasks = self.tasks();
        let number = tasks.next;
        tasks.next += 1;
        while tasks.waiting.len() >= self.0.most
            && let Some((_, oldest)) = tasks.waiting.pop_first()
        {
            oldest.abort();
        }
        let place = Place { room: self.clone(), number };
        // Under the lock, so that the place cannot be given back before it is noted.
        let handle = tokio::spawn(task(place)).abort_handle();
        tasks.waiting.insert(number, handle);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Gives the place back; false where it was given to a later task already, and this one is ended.
    #[must_use]
    pub fn leave(self) -> bool {
        self.room.tasks().waiting.remove(&self.number).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.tasks().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_full_room_ends_the_oldest_that_waits_and_nobody_else() {
        let room = Room::new(2);
        let start = |leave: bool| {
            let (alive, ended) = oneshot::channel::<()>();
            room.enter(move |place| async move {
                let _alive = alive;
                let _place = if leave {
                    drop(place);
                    None
                } else {
                    Some(place)
                };
                std::future::pending::<()>().await;
            });
            ended
        };
        let mut through = start(true);
        tokio::task::yield_now().await;
        let oldest = start(false);
        let mut second = start(false);
        let mut third = start(false);
        assert!(oldest.await.is_err(), "its task was ended");
        tokio::task::yield_now().await;
        for alive in [&mut through, &mut second, &mut third] {
            assert_eq!(alive.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
        assert_eq!(room.tasks().waiting.len(), 2);
    }
}

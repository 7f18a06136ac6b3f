//! The queue between requests and the engine's thread: bounded, so that overload is refused at the door.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A bounded queue.
pub struct Queue<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no room.
    Full,
    /// Nothing is taken any more.
    Closed,
}

impl<T> Queue<T> {
    /// An empty queue with room for `capacity`.
    pub fn new(capacity: usize) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), closed: false });
        Self { capacity, state, changed: Condvar::new() }
    }

    /// Puts all of `items` in line, or none. An empty queue takes more than its capacity: what is asked for together
    /// would never fit otherwise.
    ///
    /// # Errors
    /// When there is no room, or the queue is closed.
    pub fn push(&self, items: Vec<T>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.waiting.is_empty() && state.waiting.len() + items.len() > self.capacity {
            return Err(Refused::Full);
        }
        state.waiting.extend(items);
        self.changed.notify_all();
        Ok(())
    }

    /// Lets those go that are not `wanted` any more.
    pub fn retain(&self, wanted: impl FnMut(&T) -> bool) {
        self.lock().waiting.retain(wanted);
    }

    /// The first in line, if there is one.
    pub fn pop(&self) -> Option<T> {
        self.lock().waiting.pop_front()
    }

    /// Waits until there may be something in line, the queue is closed, or `patience` is over.
    pub fn wait(&self, patience: Duration) {
        let state = self.lock();
        if state.waiting.is_empty() && !state.closed {
            drop(self.changed.wait_timeout(state, patience));
        }
    }

    /// Takes nothing more; what waits is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether nothing more is taken.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_none_get_in() {
        let queue = Queue::new(3);
        assert_eq!(queue.push(vec![1, 2]), Ok(()));
        assert_eq!(queue.push(vec![3, 4]), Err(Refused::Full));
        assert_eq!(queue.push(vec![3]), Ok(()));
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn an_empty_queue_takes_what_comes_together() {
        let queue = Queue::new(1);
        assert_eq!(queue.push(vec![1, 2, 3]), Ok(()));
        assert_eq!(queue.push(vec![4]), Err(Refused::Full));
    }

    #[test]
    fn closed_it_hands_out_what_waits() {
        let queue = Queue::new(2);
        queue.push(vec![1]).unwrap();
        queue.close();
        assert_eq!(queue.push(vec![2]), Err(Refused::Closed));
        assert_eq!((queue.pop(), queue.pop()), (Some(1), None));
        queue.wait(Duration::from_secs(3600));
    }
}

//! What is in force on a thread, and is replaced as a whole while others use it.

use std::cell::RefCell;
use std::rc::Rc;

/// A place for a value that is cheap to clone, such as an `Rc`. Clones of the place share it. Who has taken the value
/// keeps what it took.
#[derive(Debug)]
pub struct Current<T>(Rc<RefCell<T>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Current<T> {
        Current(Rc::clone(&self.0))
    }
}

impl<T: Clone> Current<T> {
    /// With its first value.
    pub fn new(value: T) -> Current<T> {
        Current(Rc::new(RefCell::new(value)))
    }

    /// What is in force now.
    pub fn get(&self) -> T {
        self.0.borrow().clone()
    }

    /// Puts another value in force, and gives back the one that was.
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }
}

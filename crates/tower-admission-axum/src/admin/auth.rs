//! Decides which requests come from operators, and what these may do.

use std::fmt;
use std::sync::Arc;

use tower_admission::RequestHead;

/// Recognises operators: [`Tokens`](super::Tokens), one [`Token`](super::Token), or a closure of the application's.
///
/// A closure returns an [`Operator`], or a `bool` for an application that does not tell its operators apart.
///
/// ```
/// use tower_admission::{Limits, RequestHead};
/// use tower_admission_axum::admin::{self, Operator, Recorder, Role};
///
/// #[derive(Clone)]
/// struct User { name: String, may_edit: bool } // put into the extensions by authentication, further out
///
/// let operators = |head: RequestHead<'_>| {
///     let user = head.extensions.get::<User>()?;
///     let role = if user.may_edit { Role::Write } else { Role::Read };
///     Some(Operator::new(&user.name, role))
/// };
/// let router: axum::Router = admin::router(&Limits::new(), &Recorder::new(), operators);
/// ```
#[diagnostic::on_unimplemented(
    note = "use `tower_admission_axum::admin::Tokens`, or a closure `|head: RequestHead<'_>| -> bool` or \
            `-> Option<Operator>`"
)]
pub trait Auth: Send + Sync + 'static {
    /// The operator who sent the request; `None` rejects it.
    fn operator(&self, head: RequestHead<'_>) -> Option<Operator>;
}

impl<F, O> Auth for F
where
    F: Fn(RequestHead<'_>) -> O + Send + Sync + 'static,
    O: IntoOperator,
{
    fn operator(&self, head: RequestHead<'_>) -> Option<Operator> {
        self(head).into_operator()
    }
}

/// What a closure for [`Auth`] returns.
pub trait IntoOperator {
    /// The operator, if it is one.
    fn into_operator(self) -> Option<Operator>;
}

/// `true` is an operator called `operator` who may write.
impl IntoOperator for bool {
    fn into_operator(self) -> Option<Operator> {
        self.then(|| Operator::new("operator", Role::Write))
    }
}

impl IntoOperator for Option<Operator> {
    fn into_operator(self) -> Option<Operator> {
        self
    }
}

/// A person or program that may read limits and, with [`Role::Write`], change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    name: Arc<str>,
    role: Role,
}

impl Operator {
    /// An operator. The name is the author of the changes that the operator makes, in logs and in the record of changes.
    #[must_use]
    pub fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the operator may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// Look at limits and usage.
    Read,
    /// Change limits as well.
    Write,
}

impl Role {
    /// A word for logs and configuration: `read` or `write`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_closure_answers_with_an_operator_or_a_bool() {
        let request = Request::new(());
        let operator = |auth: &dyn Auth| auth.operator(RequestHead::from(&request));
        let everybody = |_: RequestHead<'_>| true;
        let expected = Operator::new("operator", Role::Write);
        assert_eq!(operator(&everybody), Some(expected));
        assert_eq!(operator(&|_: RequestHead<'_>| false), None);
        let anna = Operator::new("anna", Role::Read);
        let closure = {
            let anna = anna.clone();
            move |_: RequestHead<'_>| Some(anna.clone())
        };
        assert_eq!(operator(&closure), Some(anna));
    }
}

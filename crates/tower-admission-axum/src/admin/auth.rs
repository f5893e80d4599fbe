//! Recognises operators and their roles.

use std::fmt;
use std::sync::Arc;

use tower_admission::RequestHead;

/// Recognises operators: [`Tokens`](super::Tokens), one [`Token`](super::Token), or a closure.
///
/// A closure returns an `Option<Operator>`, or a `bool` if the application does not distinguish operators.
///
/// ```
/// use tower_admission::{Limits, RequestHead};
/// use tower_admission_axum::admin::{self, Operator, Recorder, Role};
///
/// #[derive(Clone)]
/// struct User { name: String, may_edit: bool } // an outer authentication layer adds it to the extensions
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
    /// The operator of the request; `None` rejects the request.
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

/// The return type of a closure for [`Auth`].
pub trait IntoOperator {
    /// Converts into an operator; `None` rejects the request.
    fn into_operator(self) -> Option<Operator>;
}

/// `true` is an operator with the name `operator` and the role [`Role::Write`].
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
    /// An operator. Logs and the audit trail use the name as the author of changes.
    #[must_use]
    pub fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
        }
    }

    /// The name of the operator.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The role of the operator.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }
}

/// The permissions of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// May read limits and usage.
    Read,
    /// May also change limits.
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

//! A contract's input expressions, compiled once: the same code makes training sets and serves predictions, so that
//! the two cannot differ.
//!
//! The scope is the request's columns by their names, then every feature as `view.feature`, nulls where the contract's
//! rules put them.

mod rewrite;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, TableReference};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility, cast};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use springhouse_featurestore::definition::{Column, ColumnType, Contract, FeatureView};
use springhouse_featurestore::lookup::feature_column;
use springhouse_featurestore::{Error, Result};

use crate::nesting::check_text;
use crate::session::{Session, query_error};

/// The columns that input expressions may name.
#[derive(Debug, Clone)]
pub struct Scope {
    logical: DFSchema,
    physical: SchemaRef,
    request_columns: usize,
}

impl Scope {
    /// The request's columns, then the views' features.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when two have the same name.
    pub fn new(request: &[Column], views: &[&FeatureView]) -> Result<Self> {
        let mut logical = Vec::new();
        let mut physical = Vec::new();
        for column in request {
            let field = column.to_field();
            logical.push((None, Arc::new(field.clone())));
            physical.push(field);
        }
        for view in views {
            for feature in &view.features {
                let data_type = feature.column_type.to_arrow();
                let field = Field::new(&feature.name, data_type.clone(), true);
                logical.push((Some(TableReference::bare(view.name.as_str())), Arc::new(field)));
                physical.push(Field::new(feature_column(&view.name, &feature.name), data_type, true));
            }
        }
        Ok(Self {
            logical: DFSchema::new_with_metadata(logical, HashMap::new()).map_err(query_error)?,
            physical: Arc::new(Schema::new(physical)),
            request_columns: request.len(),
        })
    }

    /// Compiles one expression; the type is the one that it yields.
    ///
    /// # Errors
    /// DataFusion's own when the expression names what is not there or does not type-check; a `Plan` error when it
    /// depends on anything but its columns.
    pub fn compile(
        &self,
        session: &Session,
        expression: &str,
    ) -> Result<(Arc<dyn PhysicalExpr>, ColumnType), DataFusionError> {
        check_text(expression)?;
        let state = session.context().state();
        let expression = state.create_logical_expr(expression, &self.logical)?;
        refuse_volatile(&expression)?;
        // Some functions (coalesce among them) exist only until they are simplified.
        let context = SimplifyContext::builder().with_schema(Arc::new(self.logical.clone())).build();
        let simplifier = ExprSimplifier::new(context);
        let mut expression = simplifier.simplify(simplifier.coerce(expression, &self.logical)?)?;
        // Signed and unsigned integers together, as in coalesce(array_length(list), 0), are decimals; a model reads floats.
        if expression.get_type(&self.logical)?.is_decimal() {
            expression = cast(expression, DataType::Float64);
        }
        let compiled = rewrite::rewrite(state.create_physical_expr(expression, &self.logical)?, &self.physical)?;
        let data_type = compiled.data_type(&self.physical)?;
        let column_type =
            ColumnType::from_arrow(&data_type).map_err(|error| DataFusionError::Plan(error.to_string()))?;
        Ok((compiled, column_type))
    }
}

/// Refuses functions whose value is not a function of their arguments alone: `now()`, `random()` and their like.
///
/// # Errors
/// A `Plan` error that names the function.
pub(crate) fn refuse_volatile(expression: &Expr) -> Result<(), DataFusionError> {
    expression
        .apply(|node| match node {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                Err(DataFusionError::Plan(format!(
                    "{}() gives another value at another time: features, inputs and spines depend on their columns alone",
                    call.func.name()
                )))
            }
            _ => Ok(TreeNodeRecursion::Continue),
        })
        .map(|_| ())
}

/// A contract's inputs, ready to evaluate.
#[derive(Debug, Clone)]
pub struct CompiledInputs {
    scope: Scope,
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
}

impl CompiledInputs {
    /// Compiles the inputs of a contract with the views that it pins, in the order of its rules.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the input; it was checked when the contract was applied.
    pub fn new(session: &Session, contract: &Contract, views: &[&FeatureView]) -> Result<Self> {
        let scope = Scope::new(&contract.request, views)?;
        let mut expressions = Vec::with_capacity(contract.inputs.len());
        for input in &contract.inputs {
            let (compiled, _) = scope
                .compile(session, &input.expression)
                .map_err(|error| query_error(error).with("contract", contract.pinned()).with("input", &input.name))?;
            expressions.push(compiled);
        }
        let schema = Column::to_schema(contract.inputs.iter().map(|input| &input.column));
        Ok(Self { scope, expressions, schema })
    }

    /// The inputs' columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Evaluates all inputs on a batch: request columns and feature columns in the scope's order.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when an expression fails on a value, such as a division by zero.
    pub fn evaluate(&self, request: &[ArrayRef], features: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        if request.len() != self.scope.request_columns {
            return Err(Error::internal("the request's columns are not those of the contract"));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let columns = request.iter().chain(features).cloned().collect();
        let scope = RecordBatch::try_new_with_options(Arc::clone(&self.scope.physical), columns, &options)?;
        let mut inputs = Vec::with_capacity(self.expressions.len());
        for (expression, field) in self.expressions.iter().zip(self.schema.fields()) {
            let value = expression
                .evaluate(&scope)
                .and_then(|value| value.into_array(rows))
                .map_err(|error| query_error(error).with("input", field.name()))?;
            let value = if value.data_type() == field.data_type() {
                value
            } else {
                arrow::compute::cast(&value, field.data_type())?
            };
            inputs.push(value);
        }
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), inputs, &options)?)
    }
}

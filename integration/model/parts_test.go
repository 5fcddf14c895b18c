package model

const partEnv = "GALLEY_MODEL_TEST_PART"

var parts = map[string]func() error{}

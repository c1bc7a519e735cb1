{{/* The beginning of every name. */}}
{{- define "windlass.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The beginning of names of objects that no namespace tells apart. */}}
{{- define "windlass.clusterName" -}}
{{- $name := include "windlass.fullname" . -}}
{{- if eq $name .Release.Namespace -}}
{{- $name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Namespace $name -}}
{{- end -}}
{{- end -}}

{{- define "windlass.controller" -}}
{{- include "windlass.fullname" . }}-controller
{{- end -}}

{{- define "windlass.agent" -}}
{{- include "windlass.fullname" . }}-agent
{{- end -}}

{{/* Labels of an object. Takes root and component. */}}
{{- define "windlass.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: windlass
{{ include "windlass.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels by which pods are found; they never change. */}}
{{- define "windlass.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* An image. Takes root and image. */}}
{{- define "windlass.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.image.registry -}}
{{- $repository = printf "%s/%s" . $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "windlass.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "windlass.controller" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "windlass.leaseNamespace" -}}
{{- default .Release.Namespace .Values.kube.leaseNamespace -}}
{{- end -}}

{{/* The Service's name with its namespace. */}}
{{- define "windlass.serviceHost" -}}
{{- printf "%s.%s.svc" (include "windlass.controller" .) .Release.Namespace -}}
{{- end -}}

{{- define "windlass.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The claim of a StatefulSet's volume, as pods beside it name it. */}}
{{- define "windlass.stateClaim" -}}
{{- $own := printf "state-%s-0" (include "windlass.controller" .) -}}
{{- default $own .Values.controller.persistence.existingClaim -}}
{{- end -}}

{{/* Refuses values that no schema can tell to be wrong together. */}}
{{- define "windlass.check" -}}
{{- $controller := .Values.controller -}}
{{- $store := $controller.store -}}
{{- if eq $controller.kind "StatefulSet" -}}
{{- if ne (int $controller.replicas) 1 -}}
{{- fail (printf "controller.replicas is %d, and SQLite serves one controller: set controller.kind=Deployment, and PostgreSQL by controller.store" (int $controller.replicas)) -}}
{{- end -}}
{{- if or $store.url $store.existingSecret -}}
{{- fail "controller.store is for PostgreSQL: set controller.kind=Deployment, or leave it empty" -}}
{{- end -}}
{{- else -}}
{{- if not (or $store.url (and $store.existingSecret $store.urlKey)) -}}
{{- fail "controller.kind=Deployment needs PostgreSQL: set controller.store.url, or controller.store.existingSecret" -}}
{{- end -}}
{{- if not $controller.identity.existingSecret -}}
{{- fail "controller.kind=Deployment needs controller.identity.existingSecret: `windlass identity create DIR` and `kubectl create secret generic NAME --from-file=DIR` make it" -}}
{{- end -}}
{{- if not (or $controller.bodies.url $controller.bodies.existingClaim) -}}
{{- fail "controller.kind=Deployment needs a place for logs and inputs that all controllers share: set controller.bodies.url or controller.bodies.existingClaim" -}}
{{- end -}}
{{- end -}}
{{- if and $store.passwordKey (not $store.existingSecret) -}}
{{- fail "controller.store.passwordKey is set: name the Secret with controller.store.existingSecret" -}}
{{- end -}}
{{- if and $controller.bodies.url $controller.bodies.existingClaim -}}
{{- fail "controller.bodies.url and controller.bodies.existingClaim are both set: set one" -}}
{{- end -}}
{{- $values := .Values.kube.secrets -}}
{{- if and $values.enabled (not .Values.kube.enabled) -}}
{{- fail "kube.secrets.enabled is for jobs of the cluster: set kube.enabled" -}}
{{- end -}}
{{- if and $values.enabled .Values.rbac.create (not $values.namespaces) -}}
{{- fail "kube.secrets.enabled needs kube.secrets.namespaces: list those whose Secrets and ConfigMaps jobs may use" -}}
{{- end -}}
{{- if and $values.namespaces (not $values.enabled) -}}
{{- fail "kube.secrets.namespaces is set: set kube.secrets.enabled, or leave it empty" -}}
{{- end -}}
{{- $bridged := .Values.kube.namespaces -}}
{{- range $values.namespaces -}}
{{- if and $bridged (not (has . $bridged)) -}}
{{- fail (printf "kube.secrets.namespaces has %s, which kube.namespaces has not: jobs of it are not bridged" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.agent.enabled (not .Values.agent.joinToken.existingSecret) -}}
{{- fail "agent.enabled needs agent.joinToken.existingSecret: `windlass join-token create --uses N` prints a token, and `kubectl create secret generic NAME --from-file=token=FILE` makes it" -}}
{{- end -}}
{{- end -}}
